//! Who gets in: the users of the state folder and the VMs of the host, as `rdp-server` asks for them.

use rdp_server::accept::{Gatekeeper, NtHash};
use rdp_server::front::Target;
use vmm::Host;

use crate::users::{Secret, User, Users};

/// Answers the front door's questions.
#[derive(Debug)]
pub struct Gate {
    users: Users,
    host: Host,
}

impl Gate {
    /// A gate for these users and VMs.
    #[must_use]
    pub fn new(users: Users, host: Host) -> Self {
        Self { users, host }
    }
}

impl Gatekeeper for Gate {
    fn nt_hash(&self, user: &str) -> Option<NtHash> {
        let user = self.users.find(user)?;
        user.secret.nt_hash().map(|digest| NtHash::new(*digest.as_bytes()))
    }

    fn verify_password(&self, user: &str, password: &str) -> bool {
        match self.users.find(user) {
            Some(user) => user.secret.verify(password),
            None => {
                Secret::verify_nobody(password);
                false
            }
        }
    }

    fn authorise(&self, user: &str, target: &Target) -> Option<String> {
        let user = self.users.find(user)?;
        let vms: Vec<_> = self.host.list().iter().map(|vm| (vm.name().to_owned(), vm.uuid().to_string())).collect();
        choose(&user, target, &vms)
    }
}

/// The VM of `vms` (name and GUID) that `user` reaches by asking for `target`.
fn choose(user: &User, target: &Target, vms: &[(String, String)]) -> Option<String> {
    let mut allowed = vms.iter().filter(|(name, _)| user.vms.allow(name));
    let chosen = match target {
        Target::Default => {
            let only = allowed.next()?;
            if allowed.next().is_some() { None } else { Some(only) }
        }
        target => allowed.find(|(name, guid)| target.names(name, guid)),
    };
    chosen.map(|(name, _)| name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::users::{Keep, VmRights};

    fn user(vms: &[&str]) -> User {
        let secret = Secret::new("x", Keep::Argon2Only).unwrap();
        User {
            name: "anna".parse().unwrap(),
            secret,
            vms: VmRights::Only(vms.iter().map(|vm| (*vm).to_owned()).collect()),
        }
    }

    #[test]
    fn unknown_and_forbidden_vms_look_the_same() {
        let guid =
            |digit: char| format!("{0}-{1}-{1}-{1}-{0}{1}", digit.to_string().repeat(8), digit.to_string().repeat(4));
        let vms = [("web01".to_owned(), guid('1')), ("web02".to_owned(), guid('2')), ("db".to_owned(), guid('3'))];
        let anna = user(&["web01", "DB"]);
        let reach = |text: &str| choose(&anna, &Target::parse(text).unwrap(), &vms);
        assert_eq!(reach("WEB01").as_deref(), Some("web01"));
        assert_eq!(reach(&format!("{{{}}}", guid('3'))).as_deref(), Some("db"));
        assert_eq!(reach("web02"), None);
        assert_eq!(reach(&guid('2')), None);
        assert_eq!(reach("nothing"), None);
    }

    #[test]
    fn without_a_wish_the_only_vm_is_taken() {
        let vms = [("a".to_owned(), String::new()), ("b".to_owned(), String::new())];
        assert_eq!(choose(&user(&["b"]), &Target::Default, &vms).as_deref(), Some("b"));
        assert_eq!(choose(&user(&["a", "b"]), &Target::Default, &vms), None);
        assert_eq!(choose(&user(&[]), &Target::Default, &vms), None);
    }
}
