//! A definition and the file that it is in.
//!
//! ```text
//! off:  file = wanted = current
//! on:   file = wanted ──(next start)──▶ current = a copy in the runtime folder, by which it is taken back
//! ```
//!
//! What the file says counts from the next start on; what the VM is while it is on stays as it was started. A file that
//! cannot be read changes nothing and is told of.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::changes::{Change, When};
use super::parse::read_text;
use super::{Definition, DefinitionError, replace_file};

/// A VM's definition as it is now and as it is wanted. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct DefinitionFile {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    /// One change at a time.
    changing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    /// What the VM is.
    current: Arc<Definition>,
    /// What the file says, where a VM that is on is something else.
    next: Option<Arc<Definition>>,
    /// Why the file cannot be read.
    problem: Option<DefinitionError>,
    /// The file as it was read or written last; none: there is none, or nobody has looked.
    text: Option<String>,
    /// While the VM is on: the file with what it is.
    run: Option<PathBuf>,
}

/// What a VM is, and what it is from its next start on.
#[derive(Debug)]
pub(crate) struct Both {
    current: Definition,
    wanted: Definition,
}

/// A definition in place of the one that is in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EditDefinition {
    /// Its text.
    pub definition: String,
    /// What messages call the file that the text comes from; none: the VM's own.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// The text of the VM's file that it was made of: nothing is changed when that is another by now. None: whatever it is.
    #[serde(default)]
    pub base: Option<String>,
}

/// A definition was not changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// It says what cannot be.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// Somebody else was faster.
    #[error("{} has been changed meanwhile", .0.display())]
    Changed(PathBuf),
    /// Something excludes it now.
    #[error("{0}")]
    Refused(String),
    /// The file cannot be written.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl DefinitionFile {
    /// The `definition` that is in the file at `path`, of a VM that is off.
    pub(crate) fn new(definition: Definition, path: PathBuf) -> Self {
        let state = State { current: Arc::new(definition), next: None, problem: None, text: None, run: None };
        Self { shared: Arc::new(Shared { path, state: Mutex::new(state), changing: Mutex::default() }) }
    }

    /// What the VM is.
    pub(crate) fn current(&self) -> Arc<Definition> {
        self.lock().current.clone()
    }

    /// What it is from its next start on.
    pub(crate) fn wanted(&self) -> Arc<Definition> {
        self.lock().wanted()
    }

    /// Why the file cannot be read.
    pub(crate) fn problem(&self) -> Option<DefinitionError> {
        self.lock().problem.clone()
    }

    /// What waits for the next start.
    pub(crate) fn waiting(&self) -> Vec<Change> {
        let state = self.lock();
        let Some(next) = &state.next else { return Vec::new() };
        let mut changes = state.current.changes_to(next, Some(&state.current));
        changes.retain(|change| change.when == When::NextStart);
        changes
    }

    /// The text of the file.
    pub(crate) fn text(&self) -> String {
        self.look();
        self.lock().text()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The VM is being started as it is; `run` is where that is kept.
    pub(crate) fn begin_run(&self, run: PathBuf) -> io::Result<()> {
        let mut state = self.lock();
        replace_file(&run, &state.current.to_toml())?;
        state.run = Some(run);
        Ok(())
    }

    /// The VM was found on, as `running` that is in the file `run`.
    pub(crate) fn found_running(&self, mut running: Definition, run: PathBuf) {
        let mut state = self.lock();
        let wanted = state.wanted();
        running.take_what_counts_now(&wanted);
        state.next = (running != *wanted).then_some(wanted);
        state.current = Arc::new(running);
        state.run = Some(run);
    }

    /// The VM is off: it is what the file says.
    pub(crate) fn end_run(&self) {
        let mut state = self.lock();
        state.run = None;
        if let Some(next) = state.next.take() {
            state.current = next;
        }
    }

    /// Sees what is in the file now. Waits for the host's disk.
    pub(crate) fn look(&self) {
        let _changing = self.change_alone();
        self.read_again();
    }

    /// Changes what the VM is, and what the file says: when this returns, both are changed. After an error both are as they
    /// were. A file that cannot be read is kept beside. Waits for the host's disk.
    pub(crate) fn change(&self, change: impl Fn(&mut Definition)) -> io::Result<()> {
        let _changing = self.change_alone();
        self.read_again();
        let Both { mut current, mut wanted } = self.both();
        change(&mut current);
        change(&mut wanted);
        current.validate().and_then(|()| wanted.validate()).map_err(io::Error::other)?;
        self.put(Both { current, wanted })
    }

    /// What the VM is, and what the file says.
    pub(crate) fn both(&self) -> Both {
        let state = self.lock();
        Both { current: Definition::clone(&state.current), wanted: Definition::clone(&state.wanted()) }
    }

    /// Undoes what [`change`](Self::change) did since there was `before`.
    pub(crate) fn put_back(&self, before: Both) -> io::Result<()> {
        let _changing = self.change_alone();
        self.put(before)
    }

    /// Puts another definition into the file, if it is of this VM and `allowed`; what is different.
    pub(crate) fn edit(
        &self,
        edit: EditDefinition,
        allowed: impl FnOnce(&Definition) -> Result<(), String>,
    ) -> Result<Vec<Change>, EditError> {
        let _changing = self.change_alone();
        self.read_again();
        let EditDefinition { definition: mut text, file, base } = edit;
        let (known, current, run) = {
            let state = self.lock();
            (state.text(), state.current.clone(), state.run.clone())
        };
        if base.is_some_and(|base| base != known) {
            return Err(EditError::Changed(self.path().into()));
        }
        let mut wanted = Definition::parse_of(&text, file.as_deref().unwrap_or(self.path()), &current)?;
        if wanted.name_devices_lastingly() {
            text = wanted.to_toml();
        }
        allowed(&wanted).map_err(EditError::Refused)?;
        if text != known {
            replace_file(self.path(), &text).map_err(|error| EditError::Io { path: self.path().into(), error })?;
        }
        let changes = self.lock().take_in(wanted, text);
        self.keep_run(run.as_deref());
        Ok(changes)
    }

    fn put(&self, Both { current, wanted }: Both) -> io::Result<()> {
        let (run, unreadable) = {
            let state = self.lock();
            (state.run.clone(), state.problem.as_ref().and(state.text.clone()))
        };
        if let Some(text) = unreadable {
            self.keep_beside(&text)?;
        }
        let text = wanted.to_toml();
        replace_file(self.path(), &text)?;
        let mut state = self.lock();
        (state.problem, state.text) = (None, Some(text));
        state.next = (current != wanted).then(|| Arc::new(wanted));
        state.current = Arc::new(current);
        drop(state);
        self.keep_run(run.as_deref());
        Ok(())
    }

    fn read_again(&self) {
        let read = read_text(self.path());
        let mut state = self.lock();
        let text = match read {
            Ok(text) if state.text.as_ref() == Some(&text) => return,
            Ok(text) => text,
            Err(error) => {
                let reason = match error.kind() {
                    io::ErrorKind::NotFound => {
                        "the file is gone; `fanlight vm edit` writes it again, `vm delete` forgets the VM".into()
                    }
                    _ => error.to_string(),
                };
                state.text = None;
                state.refuse(DefinitionError::whole(self.path(), reason));
                return;
            }
        };
        match Definition::parse_of(&text, self.path(), &state.current) {
            Ok(wanted) => {
                let mended = state.problem.is_some();
                let changes = state.take_in(wanted, text);
                if mended || !changes.is_empty() {
                    let what: Vec<_> = changes.iter().map(|change| change.what.as_str()).collect();
                    let on = state.run.is_some();
                    tracing::info!(vm = state.current.name, on, changes = what.join(", "), "definition edited");
                }
            }
            Err(problem) => {
                state.text = Some(text);
                state.refuse(problem);
            }
        }
    }

    /// What somebody wrote that is about to be replaced.
    fn keep_beside(&self, text: &str) -> io::Result<()> {
        let beside = self.path().with_extension("toml.refused");
        replace_file(&beside, text)?;
        tracing::warn!(vm = self.current().name, kept = %beside.display(), "a definition that was refused is replaced");
        Ok(())
    }

    /// It is only needed by who takes the VM back.
    fn keep_run(&self, run: Option<&Path>) {
        if let Some(run) = run
            && let Err(error) = replace_file(run, &self.current().to_toml())
        {
            tracing::warn!(file = %run.display(), %error, "what the VM is cannot be kept");
        }
    }

    fn change_alone(&self) -> MutexGuard<'_, ()> {
        self.shared.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wanted(&self) -> Arc<Definition> {
        self.next.as_ref().unwrap_or(&self.current).clone()
    }

    fn text(&self) -> String {
        self.text.clone().unwrap_or_else(|| self.wanted().to_toml())
    }

    /// The file says `wanted`; what is different from what it said.
    fn take_in(&mut self, wanted: Definition, text: String) -> Vec<Change> {
        let running = self.run.is_some().then_some(&*self.current);
        let changes = self.wanted().changes_to(&wanted, running);
        (self.problem, self.text) = (None, Some(text));
        let mut current = if self.run.is_some() { Definition::clone(&self.current) } else { wanted.clone() };
        current.take_what_counts_now(&wanted);
        self.next = (current != wanted).then(|| Arc::new(wanted));
        self.current = Arc::new(current);
        changes
    }

    fn refuse(&mut self, problem: DefinitionError) {
        if self.problem.as_ref() != Some(&problem) {
            tracing::warn!(vm = self.current.name, %problem, "definition refused; the VM stays as it is");
            self.problem = Some(problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use uuid::Uuid;

    use super::*;
    use crate::definition::{Provider, Session};

    /// The file of a VM in a folder of its own.
    struct Fixture {
        folder: PathBuf,
        file: DefinitionFile,
    }

    impl Fixture {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("fanlight-definition-{name}-{}", std::process::id()));
            fs::create_dir(&folder).expect("temporary folder");
            let definition = Definition::new("demo", Uuid::from_u128(7));
            let path = folder.join("demo.toml");
            replace_file(&path, &definition.to_toml()).expect("written");
            Self { file: DefinitionFile::new(definition, path), folder }
        }

        fn run(&self) -> PathBuf {
            self.folder.join("run.toml")
        }

        fn on_disk(&self) -> Definition {
            Definition::load(self.file.path()).expect("read")
        }

        /// As with an editor.
        fn write(&self, text: &str) {
            fs::write(self.file.path(), text).expect("edited by hand");
            self.file.look();
        }

        fn edit(&self, wanted: &Definition) -> Result<Vec<Change>, EditError> {
            let edit = EditDefinition { definition: wanted.to_toml(), file: None, base: None };
            self.file.edit(edit, |_| Ok(()))
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    fn of_memory(memory: u32) -> Definition {
        Definition { memory, ..Definition::new("demo", Uuid::from_u128(7)) }
    }

    #[test]
    fn what_is_current_is_what_the_file_says_while_the_vm_is_off() {
        let demo = Fixture::new("off");
        demo.file.change(|definition| definition.memory = 64).expect("changed");
        assert_eq!((demo.on_disk(), demo.file.current().memory), (of_memory(64), 64));
        assert!(demo.file.change(|definition| definition.memory = 0).is_err(), "a VM has memory");
        assert_eq!((demo.on_disk().memory, demo.file.current().memory), (64, 64));
        demo.write(&of_memory(128).to_toml());
        assert_eq!(demo.file.current().memory, 128);
        let changes = demo.edit(&of_memory(256)).expect("edited");
        assert_eq!((changes.len(), changes[0].when), (1, When::NextStart));
        assert_eq!((demo.on_disk().memory, demo.file.current().memory, demo.file.waiting()), (256, 256, vec![]));
        fs::remove_dir_all(&demo.folder).expect("removed");
        assert!(demo.file.change(|definition| definition.memory = 128).is_err(), "there is no folder");
        assert_eq!(demo.file.current().memory, 256);
    }

    #[test]
    fn what_is_on_stays_as_it_is_until_it_is_off() {
        let demo = Fixture::new("on");
        demo.file.begin_run(demo.run()).expect("begun");
        let wanted = Definition { session: Session { input: Provider::Hardware }, ..of_memory(1024) };
        let changes = demo.edit(&wanted).expect("edited");
        assert_eq!(changes.len(), 2);
        let current = demo.file.current();
        assert_eq!((current.memory, current.session.input), (512, Provider::Hardware), "this counts at once");
        assert_eq!(demo.file.waiting().iter().map(|change| change.what.as_str()).collect::<Vec<_>>(), ["memory"]);
        demo.file.change(|definition| definition.monitors = 2).expect("changed");
        assert_eq!((demo.on_disk().monitors, demo.on_disk().memory), (2, 1024));
        // Another gateway takes it back.
        let other = DefinitionFile::new(demo.on_disk(), demo.file.path().into());
        other.found_running(Definition::load(&demo.run()).expect("kept"), demo.run());
        assert_eq!((other.current(), other.wanted()), (demo.file.current(), demo.file.wanted()));
        assert_eq!(other.waiting().len(), 1);
        other.end_run();
        assert_eq!((other.current().memory, other.waiting()), (1024, vec![]));
    }

    #[test]
    fn a_file_that_cannot_be_read_changes_nothing_and_is_told_of() {
        let demo = Fixture::new("bad");
        let bad = "name = \"demo\"\nuuid = 7\n";
        demo.write(bad);
        let problem = demo.file.problem().expect("refused");
        assert_eq!((problem.line, problem.column), (2, 8));
        assert_eq!((demo.file.current().memory, demo.file.text().as_str()), (512, bad));
        // What must be written all the same does not destroy it.
        demo.file.change(|definition| definition.memory = 64).expect("changed");
        assert_eq!(fs::read_to_string(demo.file.path().with_extension("toml.refused")).expect("kept"), bad);
        assert!(demo.file.problem().is_none() && demo.on_disk().memory == 64);
        demo.write(&Definition::new("other", Uuid::from_u128(7)).to_toml());
        let problem = demo.file.problem().expect("refused").to_string();
        assert!(problem.contains("demo.toml:1:8: `name` of a VM stays"), "{problem}");
        fs::remove_file(demo.file.path()).expect("removed");
        demo.file.look();
        assert!(demo.file.problem().expect("gone").reason.starts_with("the file is gone"));
        demo.edit(&of_memory(96)).expect("written again");
        assert!(demo.file.problem().is_none() && demo.on_disk().memory == 96);
    }

    #[test]
    fn who_edits_what_was_changed_meanwhile_changes_nothing() {
        let demo = Fixture::new("race");
        let base = Some(demo.file.text());
        demo.write(&of_memory(128).to_toml());
        let edit = EditDefinition { definition: of_memory(256).to_toml(), file: None, base };
        assert!(matches!(demo.file.edit(edit.clone(), |_| Ok(())), Err(EditError::Changed(_))));
        assert_eq!(demo.on_disk().memory, 128);
        let edit = EditDefinition { base: Some(demo.file.text()), ..edit };
        let refused = demo.file.edit(edit.clone(), |_| Err("not now".into())).expect_err("refused").to_string();
        assert_eq!((refused.as_str(), demo.on_disk().memory), ("not now", 128));
        demo.file.edit(edit, |_| Ok(())).expect("edited");
        assert_eq!(demo.on_disk().memory, 256);
    }

    #[test]
    fn what_an_editor_wrote_is_kept_as_it_was_written() {
        let demo = Fixture::new("comment");
        let text = format!("# for the web\n{}", demo.file.text());
        let edit = EditDefinition { definition: text.clone(), file: None, base: None };
        assert_eq!(demo.file.edit(edit, |_| Ok(())).expect("edited"), []);
        assert_eq!(demo.file.text(), text);
    }
}
