use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::checkpoints::keeper::Keeper;
use crate::checkpoints::store::Store;
use crate::files::power_cut::Recording;

fn draft(name: &str, taken: u64, automatic: bool) -> Draft {
    Draft { name: name.into(), notes: format!("notes of {name}"), taken, automatic, definition: None }
}

fn tag(name: &str) -> SnapshotTag {
    name.parse().expect("a name")
}

fn snapshot(tag: &SnapshotTag, whole: bool) -> Snapshot {
    let missing = if whole { vec![] } else { vec![PathBuf::from("/b")] };
    Snapshot { tag: tag.clone(), taken: SystemTime::UNIX_EPOCH + Duration::from_secs(9), size: 5, missing }
}

/// A book with checkpoints of these names, one after the other.
fn book(names: &[&str]) -> Book {
    let mut book = Book::default();
    for (index, name) in names.iter().enumerate() {
        book.begin_create(draft(name, index as u64, true), &[], None).expect("begun");
        book.finish(&[]);
    }
    book
}

fn shape(book: &Book) -> Vec<(String, Option<String>)> {
    let tree = book.tree(None);
    tree.checkpoints.into_iter().map(|checkpoint| (checkpoint.name, checkpoint.parent)).collect()
}

#[test]
fn what_is_made_comes_after_what_was_gone_back_to() {
    let mut book = book(&["a", "b"]);
    book.begin_revert(&tag("a"), true, None).expect("begun");
    book.finish(&[]);
    book.begin_create(draft("c", 2, false), &[], None).expect("begun");
    book.finish(&[snapshot(&tag("c"), true)]);
    let child = |name: &str, parent: Option<&str>| (name.to_owned(), parent.map(str::to_owned));
    assert_eq!(shape(&book), [child("a", None), child("b", Some("a")), child("c", Some("a"))]);
    assert_eq!(book.tree(None).here.as_deref(), Some("c"));
    assert!(book.find("c").expect("there").memory && !book.find("a").expect("there").memory);
    book.begin_delete(&tag("a"), None).expect("begun");
    book.finish(&[]);
    assert_eq!(shape(&book), [child("b", None), child("c", None)]);
}

#[test]
fn where_one_is_does_not_go_with_a_checkpoint() {
    let mut book = book(&["a", "b"]);
    book.begin_delete(&tag("b"), None).expect("begun");
    book.finish(&[]);
    assert_eq!(book.tree(None).here.as_deref(), Some("a"));
    book.begin_delete(&tag("a"), None).expect("begun");
    book.finish(&[]);
    assert_eq!(book.tree(None), Book::default().tree(None));
}

#[test]
fn names_are_for_people_and_taken_once() {
    let mut book = book(&["a"]);
    let said = |result: Result<SnapshotTag, CheckpointError>| result.expect_err("refused").to_string();
    assert_eq!(said(book.begin_create(draft("a", 1, false), &[], None)), "there is a checkpoint `a` already");
    assert!(said(book.begin_create(draft(" b", 1, false), &[], None)).starts_with("a checkpoint's name has 1 to 120"));
    let notes = Draft { notes: "\t".into(), ..draft("b", 1, false) };
    assert!(said(book.begin_create(notes, &[], None)).starts_with("a checkpoint's notes have 4096"));
    assert_eq!(book.rename("b", "c").expect_err("none").to_string(), "there is no checkpoint `b`");
    book.rename("a", "12").expect("renamed");
    assert!(!book.find("12").expect("there").automatic, "who names it wants it");
    assert_eq!(book.find("12").expect("there").tag, tag("a"), "the images keep the first name");
    assert_eq!(book.begin_create(draft("a", 1, false), &[], None).expect("the name is free"), tag("a~2"));
}

#[test]
fn a_number_is_no_tag_and_neither_is_what_the_images_have() {
    let mut book = Book::default();
    let found = [snapshot(&tag("5~2"), false)];
    assert_eq!(book.begin_create(draft("5", 1, false), &found, None).expect("begun"), tag("5~3"));
    let long = "é".repeat(60);
    assert_eq!(Book::default().begin_create(draft(&long, 1, false), &[], None).expect("begun").as_str(), long);
}

#[test]
fn what_the_images_have_and_nobody_entered_is_a_checkpoint() {
    let mut book = book(&["a"]);
    book.rename("a", "b").expect("renamed");
    let found = [snapshot(&tag("a"), true), snapshot(&tag("b"), true), snapshot(&tag("half"), false)];
    book.adopt(&found);
    book.adopt(&found);
    let names: Vec<String> = shape(&book).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["b", "b (2)"]);
    let adopted = book.find("b (2)").expect("there");
    assert_eq!((adopted.tag.as_str(), adopted.taken, adopted.memory), ("b", 9, true));
}

#[test]
fn of_those_taken_by_the_clock_the_oldest_goes() {
    let mut book = book(&["a", "b", "c"]);
    assert!(book.surplus(3).is_none());
    assert_eq!(book.surplus(2).expect("too many").name, "a");
    book.rename("a", "kept").expect("renamed");
    assert!(book.surplus(2).is_none());
}

#[test]
fn a_checkpoint_says_why_it_cannot_be_gone_back_to() {
    let book = book(&["a", "b"]);
    let tree = book.tree(Some(&[snapshot(&tag("a"), false)]));
    let problems: Vec<&str> = tree.checkpoints.iter().filter_map(|found| found.problem.as_deref()).collect();
    assert_eq!(problems, ["/b did not belong to the VM then", "the VM's disks do not have it any more"]);
    assert!(book.tree(None).checkpoints.iter().all(|found| found.problem.is_none() && found.size.is_none()));
}

#[test]
fn a_book_that_goes_round_in_circles_is_shown_all_the_same() {
    let mut book = book(&["a", "b"]);
    book.entries[0].parent = Some(tag("b"));
    assert!(book.tree(None).checkpoints.len() <= 2);
    book.entries[0].parent = Some(tag("unheard of"));
    assert_eq!(book.tree(None).checkpoints.len(), 2);
}

#[test]
fn nothing_is_begun_while_a_revert_is_cut_off_but_another_revert() {
    let mut book = book(&["a", "b"]);
    book.begin_revert(&tag("a"), false, None).expect("begun");
    let error = book.begin_delete(&tag("b"), None).expect_err("refused").to_string();
    assert_eq!(error, "going back to checkpoint `a` was cut off; start the VM or revert it first");
    book.begin_revert(&tag("b"), true, None).expect("begun");
    assert_eq!(book.cut_off_revert().map(|(entry, resume)| (entry.name.as_str(), resume)), Some(("b", true)));
    assert_eq!(book.judge(&[]), Verdict::Never, "nothing is left to go back to");
}

/// The images of two disks, and what the guest has written.
#[derive(Debug, Default, Clone)]
struct Images {
    now: [u32; 2],
    first: BTreeMap<SnapshotTag, u32>,
    second: BTreeMap<SnapshotTag, u32>,
}

impl Images {
    fn found(&self) -> Vec<Snapshot> {
        let tags: BTreeSet<&SnapshotTag> = self.first.keys().chain(self.second.keys()).collect();
        let is_whole = |tag| self.first.contains_key(tag) && self.second.contains_key(tag);
        tags.into_iter().map(|tag| snapshot(tag, is_whole(tag))).collect()
    }

    /// Does `change` as far as it gets: `steps` of two.
    fn apply(&mut self, change: &Change, steps: u8) {
        let disks = [&mut self.first, &mut self.second].into_iter().zip(&mut self.now).take(steps.into());
        for (disk, now) in disks {
            match change {
                Change::Create(entry) => drop(disk.insert(entry.tag.clone(), *now)),
                Change::Revert { tag, .. } => *now = disk[tag],
                Change::Delete(tag) => drop(disk.remove(tag)),
            }
        }
    }

    /// What a VM does that finds a change in the book.
    fn settle(&mut self, book: &mut Book) {
        for _ in 0..4 {
            match book.judge(&self.found()) {
                Verdict::Nothing => return,
                Verdict::Done => book.finish(&self.found()),
                Verdict::Never => book.give_up(),
                Verdict::Clear(tag) => self.apply(&Change::Delete(tag), 2),
                Verdict::Again(_) => {
                    let what = book.pending.clone().expect("it is under way").what;
                    self.apply(&what, 2);
                    book.finish(&self.found());
                }
            }
        }
        panic!("it is never settled: {book:?}");
    }
}

/// A VM with a book on disk, and what its images were at each mark.
struct Marked {
    recording: Recording,
    keeper: Keeper,
    images: Images,
    /// And what was the state of the VM and of its checkpoints before the change that was under way, and after it.
    marks: Vec<(Images, [Promise; 2])>,
    promised: [Promise; 2],
}

/// What the VM is in, and what each checkpoint holds.
type Promise = ([u32; 2], BTreeMap<SnapshotTag, [u32; 2]>);

impl Marked {
    fn mark(&mut self) {
        Recording::mark(self.recording.folder(), self.marks.len());
        self.marks.push((self.images.clone(), self.promised.clone()));
    }

    /// Does a change as a VM does it: entered, done disk by disk, entered.
    fn change(&mut self, begin: impl FnOnce(&mut Book) -> Result<(), CheckpointError>, promise: Promise) {
        self.promised[1] = promise;
        self.mark();
        self.keeper.change(begin).expect("entered");
        let what = self.keeper.book().expect("readable").pending.expect("under way").what;
        let before = self.images.clone();
        for steps in 1..=2 {
            self.images = before.clone();
            self.images.apply(&what, steps);
            self.mark();
        }
        let found = self.images.found();
        let finished = self.keeper.change(|book| {
            book.finish(&found);
            Ok(())
        });
        finished.expect("entered");
        self.promised[0] = self.promised[1].clone();
        self.mark();
    }

    fn create(&mut self, name: &str) {
        let (found, mut after) = (self.images.found(), self.promised[0].clone());
        after.1.insert(tag(name), self.images.now);
        self.change(|book| book.begin_create(draft(name, 1, false), &found, None).map(drop), after);
    }

    fn revert(&mut self, name: &str) {
        let mut after = self.promised[0].clone();
        after.0 = after.1[&tag(name)];
        self.change(|book| book.begin_revert(&tag(name), false, None), after);
    }

    fn delete(&mut self, name: &str) {
        let mut after = self.promised[0].clone();
        after.1.remove(&tag(name));
        self.change(|book| book.begin_delete(&tag(name), None), after);
    }

    fn write(&mut self, value: u32) {
        self.images.now = [value; 2];
        for (now, _) in &mut self.promised {
            *now = [value; 2];
        }
        self.mark();
    }
}

#[test]
fn power_that_goes_at_any_point_leaves_every_checkpoint_whole_and_the_vm_in_one_state() {
    let recording = Recording::new("book");
    let file = recording.folder_named("checkpoints").join("a.json");
    let (keeper, images) = (Keeper::open(file.clone()), Images::default());
    let mut vm = Marked { recording, keeper, images, marks: Vec::new(), promised: Default::default() };
    vm.write(1);
    vm.create("a");
    vm.write(2);
    vm.create("b");
    vm.write(3);
    vm.revert("a");
    vm.write(4);
    vm.delete("a");
    vm.create("c");
    vm.revert("b");
    vm.delete("b");

    let cuts = vm.recording.cut_everywhere(|mark| {
        let (mut images, [before, after]) = vm.marks[mark].clone();
        let mut book = Store::new(file.clone()).read().expect("it is one of those that were written");
        images.settle(&mut book);
        let tags: BTreeSet<&SnapshotTag> = book.entries.iter().map(|entry| &entry.tag).collect();
        assert!(tags.iter().copied().eq(images.first.keys()) && tags.iter().copied().eq(images.second.keys()));
        let is = tags.iter().map(|tag| ((*tag).clone(), [images.first[*tag], images.second[*tag]])).collect();
        let is: Promise = (images.now, is);
        assert!(is == before || is == after, "{is:?} is neither {before:?} nor {after:?}");
    });
    assert!(cuts > 60, "{cuts} cuts");
}

#[derive(Debug, Clone)]
enum Op {
    /// The guest writes.
    Write(u32),
    /// A name, how far it gets, and whether its end is entered.
    Create(u8, u8, bool),
    Revert(usize, u8, bool),
    Delete(usize, u8, bool),
    Rename(usize, u8),
}

fn op() -> impl Strategy<Value = Op> {
    let steps = || prop_oneof![1 => 0_u8..2, 2 => Just(2_u8)];
    let which = || any::<usize>();
    prop_oneof![
        2 => any::<u32>().prop_map(Op::Write),
        3 => (0_u8..12, steps(), any::<bool>()).prop_map(|(name, steps, entered)| Op::Create(name, steps, entered)),
        2 => (which(), steps(), any::<bool>()).prop_map(|(which, steps, entered)| Op::Revert(which, steps, entered)),
        2 => (which(), steps(), any::<bool>()).prop_map(|(which, steps, entered)| Op::Delete(which, steps, entered)),
        1 => (which(), 0_u8..12).prop_map(|(which, name)| Op::Rename(which, name)),
    ]
}

proptest! {
    #[test]
    fn whenever_it_is_cut_off_every_other_state_is_whole(ops in proptest::collection::vec(op(), 0..40)) {
        let (mut book, mut images) = (Book::default(), Images::default());
        // What the guest had written when each checkpoint was taken.
        let mut kept: BTreeMap<SnapshotTag, [u32; 2]> = BTreeMap::new();
        for (time, op) in ops.into_iter().enumerate() {
            let chosen = |which: usize| {
                let count = book.entries.len();
                (count > 0).then(|| book.entries[which % count].clone())
            };
            let steps = match op {
                Op::Write(value) => {
                    images.now = [value, value.wrapping_add(1)];
                    None
                }
                Op::Create(name, steps, entered) => {
                    let begun = book.begin_create(draft(&name.to_string(), time as u64, false), &images.found(), None);
                    if let Ok(tag) = &begun {
                        prop_assert!(!kept.contains_key(tag), "a tag is given twice");
                        kept.insert(tag.clone(), images.now);
                    }
                    begun.is_ok().then_some((steps, entered))
                }
                Op::Revert(which, steps, entered) => chosen(which).map(|entry| {
                    book.begin_revert(&entry.tag, true, None).expect("nothing is under way");
                    (steps, entered)
                }),
                Op::Delete(which, steps, entered) => chosen(which).map(|entry| {
                    book.begin_delete(&entry.tag, None).expect("nothing is under way");
                    (steps, entered)
                }),
                Op::Rename(which, name) => {
                    if let Some(entry) = chosen(which) {
                        let _ = book.rename(&entry.name, &name.to_string());
                    }
                    None
                }
            };
            let reverted = book.cut_off_revert().map(|(entry, _)| entry.tag.clone());
            if let Some((steps, entered)) = steps {
                let what = book.pending.clone().expect("begun").what;
                images.apply(&what, steps);
                if entered && steps == 2 {
                    book.finish(&images.found());
                }
            }
            // The gateway ends here, and another reads what was written.
            let text = serde_json::to_string(&book).expect("written");
            book = serde_json::from_str(&text).expect("read");
            images.settle(&mut book);

            prop_assert!(book.pending.is_none());
            prop_assert!(reverted.is_none_or(|tag| images.now == kept[&tag] && book.here == Some(tag)));
            let tags: BTreeSet<SnapshotTag> = book.entries.iter().map(|entry| entry.tag.clone()).collect();
            prop_assert_eq!(tags.len(), book.entries.len(), "a tag twice");
            let names: BTreeSet<&str> = book.entries.iter().map(|entry| entry.name.as_str()).collect();
            prop_assert_eq!(names.len(), book.entries.len(), "a name twice");
            prop_assert!(tags.iter().eq(images.first.keys()) && tags.iter().eq(images.second.keys()), "what nobody knows");
            for tag in &tags {
                prop_assert_eq!([images.first[tag], images.second[tag]], kept[tag], "a state that changed");
            }
            kept.retain(|tag, _| tags.contains(tag));
            let known = |tag: &Option<SnapshotTag>| tag.as_ref().is_none_or(|tag| tags.contains(tag));
            prop_assert!(known(&book.here) && book.entries.iter().all(|entry| known(&entry.parent)));
            let tree = book.tree(Some(&images.found()));
            prop_assert_eq!(tree.checkpoints.len(), book.entries.len(), "the tree has each once");
            prop_assert!(tree.unfinished.is_none() && tree.checkpoints.iter().all(|found| found.problem.is_none()));
        }
    }
}
