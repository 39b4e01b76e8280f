//! `fanlight vm edit`: options or a person's editor change a definition.

use std::fs::{self, File};
use std::io::{self, BufRead, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use vmm::{Change, Definition, EditDefinition, When};

use super::Context;
use super::settings::Settings;
use crate::api::client::segment;
use crate::api::model::EditedVm;
use crate::problem::{Code, Problem};

/// Change what a VM is, with options or with your editor
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  fanlight vm edit web01 --memory 2048 --vcpus 4
  fanlight vm edit db01 --memory maximum=8192
  fanlight vm edit web01                           opens $VISUAL, $EDITOR or vi on its definition

A VM that is on keeps what it runs with: what cannot change now counts from its next start on. Disks come and go with
`fanlight disk attach` and `detach`.")]
pub(super) struct Edit {
    /// The VM: name or UUID
    vm: String,
    #[command(flatten)]
    settings: Settings,
}

/// A copy of a definition that a person edits. It stays until its text is taken.
struct Draft {
    path: PathBuf,
}

impl Edit {
    pub(super) async fn run(self, context: &Context) -> Result<(), Problem> {
        let path = format!("/v1/vms/{}/definition", segment(&self.vm));
        let base = context.client.get_bytes(&format!("{path}?file=true")).await?;
        let base = String::from_utf8_lossy(&base).into_owned();
        let edited = if self.settings == Settings::default() {
            by_hand(context, &path, base).await?
        } else {
            let edit = EditDefinition { definition: self.changed(&base)?, file: None, base: Some(base) };
            Some(context.client.put(&path, &edit).await?)
        };
        let nothing: &[Change] = &[];
        let changes = edited.as_ref().map_or(nothing, |edited: &EditedVm| &edited.changes);
        let vm = edited.as_ref().map_or(self.vm.as_str(), |edited| &edited.vm.name);
        let is_on = edited.as_ref().is_some_and(|edited| edited.vm.pid.is_some());
        let mended = edited.as_ref().is_some_and(|edited| edited.mended);
        let told = || if mended { format!("{vm} is mended") } else { in_words(vm, is_on, changes) };
        context.output.value(&serde_json::json!({ "changes": changes, "mended": mended }), told);
        Ok(())
    }

    /// The definition in `base`, as the options want it.
    fn changed(&self, base: &str) -> Result<String, Problem> {
        let invalid = |error: &dyn std::fmt::Display| Problem::new(Code::Invalid, error);
        let mut definition = Definition::parse(base, Path::new("its definition")).map_err(|error| {
            invalid(&error).hint(format!("it was edited by hand; `fanlight vm edit {}` mends it", self.vm))
        })?;
        self.settings.clone().apply(&mut definition).map_err(|error| invalid(&error))?;
        definition.settle();
        definition.validate().map_err(|error| invalid(&error))?;
        Ok(definition.to_toml())
    }
}

/// Lets a person edit until the text is right, or they give up; none: they changed nothing.
async fn by_hand(context: &Context, path: &str, base: String) -> Result<Option<EditedVm>, Problem> {
    let draft = Draft::new(&base)?;
    loop {
        draft.open_editor()?;
        let text = draft.read()?;
        if text == base {
            draft.remove();
            return Ok(None);
        }
        let edit = EditDefinition { definition: text, file: Some(draft.path.clone()), base: Some(base.clone()) };
        let problem = match context.client.put(path, &edit).await {
            Ok(edited) => {
                draft.remove();
                return Ok(Some(edited));
            }
            Err(problem) => problem,
        };
        if problem.code != Code::Invalid || !asks_to_go_on(context, &problem) {
            let kept = format!("nothing is changed; your text is in {}", draft.path.display());
            return Err(Problem {
                hint: Some(problem.hint.map_or(kept.clone(), |hint| format!("{hint}; {kept}"))),
                ..problem
            });
        }
    }
}

fn asks_to_go_on(context: &Context, problem: &Problem) -> bool {
    context.output.problem(problem);
    // Programs see only what came of it.
    let _ = write!(io::stderr(), "Edit again? [Y/n] ");
    let mut answer = String::new();
    match io::stdin().lock().read_line(&mut answer) {
        Ok(1..) => matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes"),
        // Nobody is there.
        Ok(0) | Err(_) => false,
    }
}

impl Draft {
    fn new(text: &str) -> Result<Self, Problem> {
        let path = std::env::temp_dir().join(format!("fanlight-edit-{}.toml", uuid::Uuid::new_v4()));
        let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
        made.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| unusable(&path, &error))?;
        Ok(Self { path })
    }

    /// Runs the editor as git does: a command of the shell, so that it may have options.
    fn open_editor(&self) -> Result<(), Problem> {
        let set = |name| std::env::var(name).ok().filter(|editor| !editor.trim().is_empty());
        let editor = set("VISUAL").or_else(|| set("EDITOR")).unwrap_or_else(|| "vi".into());
        let status = Command::new("sh").arg("-c").arg(format!("{editor} \"$1\"")).arg(&editor).arg(&self.path).status();
        let failed = |how: String| {
            let hint = format!("nothing is changed; your text is in {}", self.path.display());
            Problem::new(Code::Internal, format!("the editor `{editor}` {how}")).hint(hint)
        };
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(failed(format!("ended with {status}"))),
            Err(error) => Err(failed(format!("cannot be started: {error}"))),
        }
    }

    fn read(&self) -> Result<String, Problem> {
        fs::read_to_string(&self.path).map_err(|error| unusable(&self.path, &error))
    }

    fn remove(self) {
        // A copy that stays is harmless.
        let _ = fs::remove_file(&self.path);
    }
}

fn unusable(path: &Path, error: &io::Error) -> Problem {
    Problem::new(Code::Internal, format!("{}: {error}", path.display()))
}

/// From when on a change counts is worth a word only for a VM that is on.
fn in_words(vm: &str, is_on: bool, changes: &[Change]) -> String {
    if changes.is_empty() {
        return format!("{vm} is as it was");
    }
    let lines = changes.iter().map(|change| {
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "unset".into());
        let (what, from, to) = (&change.what, value(&change.from), value(&change.to));
        if is_on {
            format!("{what}: {} ({from} → {to})", when(change.when))
        } else {
            format!("{what}: {from} → {to}")
        }
    });
    std::iter::once(format!("{vm} is edited")).chain(lines).collect::<Vec<_>>().join("\n")
}

fn when(when: When) -> &'static str {
    match when {
        When::Now => "now",
        When::NextStart => "at the next start",
    }
}

/// `memory, vcpus at the next start`: what a line about a VM says.
pub(super) fn waiting(changes: &[Change]) -> Option<String> {
    let what: Vec<&str> = changes.iter().map(|change| change.what.as_str()).collect();
    (!what.is_empty()).then(|| format!("{} at the next start", what.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_a_line() {
        let change = |what: &str, from: Option<&str>, when| Change {
            what: what.into(),
            from: from.map(Into::into),
            to: Some("4".into()),
            when,
        };
        let changes = [change("vcpus", Some("2"), When::NextStart), change("memory.minimum", None, When::Now)];
        assert_eq!(
            in_words("web01", true, &changes),
            "web01 is edited\nvcpus: at the next start (2 → 4)\nmemory.minimum: now (unset → 4)"
        );
        assert_eq!(
            in_words("web01", false, &changes),
            "web01 is edited\nvcpus: 2 → 4\nmemory.minimum: unset → 4",
            "one that is off has no other start than the next"
        );
        assert_eq!(in_words("web01", true, &[]), "web01 is as it was");
        assert_eq!(waiting(&changes).as_deref(), Some("vcpus, memory.minimum at the next start"));
    }
}
