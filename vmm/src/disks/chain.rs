//! Which image stands on which: pure.
//!
//! The images that are known are those that VMs name, those in the folders that were looked at, and all that these
//! stand on. An image is needed as long as a VM names it, or a known image stands on it or has bytes in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::definition::DiskFormat;

/// Images and what they stand on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chains {
    images: BTreeMap<PathBuf, Link>,
}

/// What is known of one image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) format: Option<DiskFormat>,
    /// Bytes that a guest sees.
    pub(crate) size: Option<u64>,
    /// What it stands on.
    pub(crate) backing: Option<PathBuf>,
    /// What it stands on, when that is no file of this host.
    pub(crate) remote: Option<String>,
    /// Files that hold bytes of it.
    pub(crate) parts: Vec<PathBuf>,
    /// The VMs that name it.
    pub(crate) vms: BTreeSet<String>,
    /// Why nothing more is known of it.
    pub(crate) problem: Option<String>,
}

/// An image, with those that stand on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeNode {
    /// Where it is.
    pub path: PathBuf,
    /// How it is laid out.
    pub format: Option<DiskFormat>,
    /// Bytes that a guest sees.
    pub size: Option<u64>,
    /// What it stands on, when that is no file of this host.
    pub remote: Option<String>,
    /// The VMs that name it.
    pub vms: Vec<String>,
    /// What is wrong with it.
    pub problem: Option<String>,
    /// The images that stand on it.
    pub above: Vec<TreeNode>,
}

impl Chains {
    /// Notes an image. Of two that tell about the same path, the VMs count together and the rest of the later.
    pub(crate) fn insert(&mut self, path: PathBuf, link: Link) {
        let before = self.images.remove(&path).unwrap_or_default();
        let vms = before.vms.union(&link.vms).cloned().collect();
        self.images.insert(path, Link { vms, ..link });
    }

    /// Notes that a VM names an image.
    pub(crate) fn name(&mut self, path: PathBuf, vm: &str) {
        self.images.entry(path).or_default().vms.insert(vm.into());
    }

    pub(crate) fn contains(&self, path: &Path) -> bool {
        self.images.contains_key(path)
    }

    /// What the image at `path` stands on.
    pub(crate) fn backing(&self, path: &Path) -> Option<&Path> {
        self.images.get(path)?.backing.as_deref()
    }

    /// Whether a VM names it.
    pub(crate) fn is_named(&self, path: &Path) -> bool {
        self.images.get(path).is_some_and(|image| !image.vms.is_empty())
    }

    /// Where the images are.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.images.keys().map(PathBuf::as_path)
    }

    /// Why the image at `path` must stay, if it must.
    pub(crate) fn need_of(&self, path: &Path) -> Option<String> {
        let image = self.images.get(path);
        if let Some(vm) = image.and_then(|image| image.vms.first()) {
            return Some(format!("it is a disk of VM {vm}"));
        }
        self.stood_on(path, |_| false)
    }

    /// Why the image at `path` cannot be written to as what `overlay` stood on, if it cannot.
    pub(crate) fn need_beside(&self, path: &Path, overlay: &Path) -> Option<String> {
        let vm = self.images.get(path).and_then(|image| image.vms.first());
        let other = self.above(path).map(|(above, _)| above).find(|above| above.as_path() != overlay);
        vm.map(|vm| format!("it is a disk of VM {vm}"))
            .or_else(|| other.map(|above| format!("{} stands on it", above.display())))
            .or_else(|| self.part_of(path))
    }

    /// Why the bytes of the image at `path` must stay as they are, if they must. Images above that no VM names are passed over
    /// where `passes` says so.
    pub(crate) fn stood_on(&self, path: &Path, passes: impl Fn(&Path) -> bool) -> Option<String> {
        let mut above = self.above(path).filter(|(above, link)| !link.vms.is_empty() || !passes(above));
        let stands = above.next().map(|(above, _)| format!("{} stands on it", above.display()));
        stands.or_else(|| self.part_of(path))
    }

    fn part_of(&self, path: &Path) -> Option<String> {
        let mut whole = self.images.iter().filter(|(_, link)| link.parts.iter().any(|part| part == path));
        whole.next().map(|(whole, _)| format!("it holds bytes of {}", whole.display()))
    }

    /// All images, each below what it stands on. Each is there once, also where they stand on each other in a circle.
    pub(crate) fn tree(&self) -> Vec<TreeNode> {
        let mut left: BTreeSet<&Path> = self.images.keys().map(PathBuf::as_path).collect();
        let is_root = |link: &Link| link.backing.as_deref().is_none_or(|backing| !self.contains(backing));
        let roots: Vec<&Path> =
            self.images.iter().filter(|(_, link)| is_root(link)).map(|(path, _)| path.as_path()).collect();
        let mut tree: Vec<_> = roots.into_iter().filter_map(|root| self.node(root, &mut left)).collect();
        // What no root leads to is in a circle, or above one.
        while let Some(path) = left.first().copied() {
            let start = self.circle_below(path);
            tree.extend(
                self.node(start, &mut left)
                    .map(|node| TreeNode { problem: Some("it stands on itself".into()), ..node }),
            );
        }
        tree
    }

    fn above<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = (&'a PathBuf, &'a Link)> {
        self.images.iter().filter(move |(_, link)| link.backing.as_deref() == Some(path))
    }

    fn node<'a>(&'a self, path: &'a Path, left: &mut BTreeSet<&'a Path>) -> Option<TreeNode> {
        let link = self.images.get(path)?;
        left.remove(path).then_some(())?;
        let above = self.above(path).filter_map(|(above, _)| self.node(above, left)).collect();
        let missing = link.backing.as_deref().filter(|backing| !self.contains(backing));
        let missing = missing.map(|backing| format!("it stands on {}, which is unknown", backing.display()));
        Some(TreeNode {
            path: path.into(),
            format: link.format,
            size: link.size,
            remote: link.remote.clone(),
            vms: link.vms.iter().cloned().collect(),
            problem: link.problem.clone().or(missing),
            above,
        })
    }

    /// Goes down from `path`, which no root leads to, until an image comes again.
    fn circle_below<'a>(&'a self, path: &'a Path) -> &'a Path {
        let (mut at, mut seen) = (path, BTreeSet::new());
        while seen.insert(at)
            && let Some(below) = self.images.get(at).and_then(|link| link.backing.as_deref())
        {
            at = below;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(number: u8) -> PathBuf {
        format!("/{number}").into()
    }

    fn link(backing: Option<u8>) -> Link {
        Link { backing: backing.map(path), ..Link::default() }
    }

    /// Images by number: what each stands on, and whether a VM names it. Circles and gaps are among them.
    fn chains() -> impl Strategy<Value = Chains> {
        let image = (0_u8..12, proptest::option::of(0_u8..14), proptest::bool::weighted(0.2));
        proptest::collection::vec(image, 0..12).prop_map(|images| {
            let mut chains = Chains::default();
            for (number, backing, named) in images {
                chains.insert(path(number), link(backing));
                if named {
                    chains.name(path(number), "web01");
                }
            }
            chains
        })
    }

    /// An image and all that it stands on, as far as it is known.
    fn chain(chains: &Chains, top: &Path) -> Vec<(PathBuf, Link)> {
        let (mut chain, mut next) = (Vec::new(), Some(top.to_path_buf()));
        while let Some(path) = next.take().filter(|path| !chain.iter().any(|(seen, _)| seen == path)) {
            if let Some(link) = chains.images.get(&path) {
                next.clone_from(&link.backing);
                chain.push((path, link.clone()));
            }
        }
        chain
    }

    fn paths(tree: &[TreeNode]) -> Vec<PathBuf> {
        tree.iter().flat_map(|node| std::iter::once(node.path.clone()).chain(paths(&node.above))).collect()
    }

    proptest! {
        #[test]
        fn whatever_may_be_deleted_leaves_the_chains_of_all_others_whole(
            chains in chains(),
            deletions in proptest::collection::vec(0_u8..14, 0..40),
        ) {
            let mut left = chains.clone();
            for number in deletions {
                if left.need_of(&path(number)).is_none() {
                    left.images.remove(&path(number));
                }
            }
            for (image, link) in &left.images {
                prop_assert_eq!(chain(&left, image), chain(&chains, image));
                prop_assert!(link.vms.is_empty() || left.need_of(image).is_some());
            }
            let named = |chains: &Chains| chains.images.values().filter(|link| !link.vms.is_empty()).count();
            prop_assert_eq!(named(&left), named(&chains), "a VM lost a disk");
        }

        #[test]
        fn each_image_is_in_the_tree_once_and_above_what_it_stands_on(chains in chains()) {
            let tree = chains.tree();
            let mut shown = paths(&tree);
            shown.sort();
            prop_assert_eq!(shown, chains.images.keys().cloned().collect::<Vec<_>>());
            let mut nodes: Vec<&TreeNode> = tree.iter().collect();
            while let Some(node) = nodes.pop() {
                for above in &node.above {
                    prop_assert_eq!(chains.images[&above.path].backing.as_ref(), Some(&node.path));
                    nodes.push(above);
                }
            }
        }
    }

    #[test]
    fn a_circle_is_shown_and_named() {
        let mut chains = Chains::default();
        for (number, backing) in [(1, 2), (2, 3), (3, 2), (4, 9)] {
            chains.insert(path(number), link(Some(backing)));
        }
        let tree = chains.tree();
        assert_eq!(tree[0].problem.as_deref(), Some("it stands on /9, which is unknown"));
        assert_eq!((&tree[1].path, tree[1].problem.as_deref()), (&path(2), Some("it stands on itself")));
        assert_eq!(tree[1].above.iter().map(|node| node.path.clone()).collect::<Vec<_>>(), [path(1), path(3)]);
    }

    #[test]
    fn a_disk_of_a_vm_is_needed_and_so_is_what_it_stands_on() {
        let mut chains = Chains::default();
        chains.name(path(2), "web01");
        chains.insert(path(2), link(Some(1)));
        chains.insert(path(1), link(None));
        assert_eq!(chains.need_of(&path(2)).as_deref(), Some("it is a disk of VM web01"));
        assert_eq!(chains.need_of(&path(1)).as_deref(), Some("/2 stands on it"));
        assert_eq!((chains.need_of(&path(7)), chains.stood_on(&path(2), |_| false)), (None, None));
        assert_eq!(chains.stood_on(&path(1), |_| true).as_deref(), Some("/2 stands on it"), "a VM has that");
        chains.insert(path(4), Link { parts: vec![path(5)], ..link(Some(3)) });
        assert_eq!(chains.need_of(&path(5)).as_deref(), Some("it holds bytes of /4"));
        assert_eq!(chains.stood_on(&path(3), |above| above == path(4)), None);
        assert_eq!(chains.need_beside(&path(1), &path(2)), None);
        chains.insert(path(3), link(Some(1)));
        assert_eq!(chains.need_beside(&path(1), &path(2)).as_deref(), Some("/3 stands on it"));
        chains.name(path(1), "web02");
        assert_eq!(chains.need_beside(&path(1), &path(2)).as_deref(), Some("it is a disk of VM web02"));
    }
}
