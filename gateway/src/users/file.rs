//! `users.toml` as it stands on disk.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::password::{NtDigest, Secret, is_hash};
use super::{User, UserName, VmRights};

const HEADER: &str = "# Users of Fanlight. Written by `fanlight user`; edit it only while no gateway runs.\n\n";

#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    user: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Entry {
    name: String,
    argon2id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    nt_hash: Option<String>,
    /// The VMs the user may use; absent means all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    vms: Option<Vec<String>>,
}

/// Reads the file's text; the error says where and what.
pub(super) fn decode(path: &Path, text: &str) -> Result<Vec<User>, String> {
    let file: File = toml::from_str(text).map_err(|error| {
        // The message may quote the line, and the line may hold a hash: only the place is told.
        let line = error.span().map_or(1, |span| text.get(..span.start).unwrap_or(text).matches('\n').count() + 1);
        format!("{}:{line}: {}", path.display(), error.message())
    })?;
    file.user
        .into_iter()
        .map(|entry| entry.decode().map_err(|reason| format!("{}: {reason}", path.display())))
        .collect()
}

pub(super) fn encode<'a>(users: impl Iterator<Item = &'a User>) -> Result<String, toml::ser::Error> {
    let file = File { user: users.map(Entry::encode).collect() };
    Ok(format!("{HEADER}{}", toml::to_string(&file)?))
}

impl Entry {
    fn encode(user: &User) -> Self {
        let nt_hash = user.secret.nt_hash.as_ref().map(|digest| to_hex(digest.as_bytes()));
        let vms = match &user.vms {
            VmRights::All => None,
            VmRights::Only(names) => Some(names.iter().cloned().collect()),
        };
        Self { name: user.name.to_string(), argon2id: user.secret.argon2.clone(), nt_hash, vms }
    }

    fn decode(self) -> Result<User, String> {
        let name: UserName = self.name.parse().map_err(|error| format!("user `{}`: {error}", self.name))?;
        if !is_hash(&self.argon2id) {
            return Err(format!("user `{name}`: `argon2id` is not an argon2id hash"));
        }
        let nt_hash = match self.nt_hash {
            None => None,
            Some(hex) => {
                Some(from_hex(&hex).ok_or_else(|| format!("user `{name}`: `nt-hash` must be 32 hexadecimal digits"))?)
            }
        };
        let vms = self.vms.map_or(VmRights::All, |names| VmRights::Only(names.into_iter().collect()));
        Ok(User { name, secret: Secret { argon2: self.argon2id, nt_hash: nt_hash.map(NtDigest) }, vms })
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    let bytes: Vec<u8> =
        digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    (digits.len() == 32).then_some(bytes)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::super::password::Keep;
    use super::*;

    #[test]
    fn users_survive_the_file() {
        let users = vec![
            User {
                name: "Anna".parse().unwrap(),
                secret: Secret::new("one", Keep::NtHashToo).unwrap(),
                vms: VmRights::Only(["web01".to_owned()].into()),
            },
            User {
                name: "bob".parse().unwrap(),
                secret: Secret::new("two", Keep::Argon2Only).unwrap(),
                vms: VmRights::All,
            },
        ];
        let text = encode(users.iter()).unwrap();
        assert_eq!(decode(Path::new("users.toml"), &text).unwrap(), users);
    }

    #[test]
    fn damage_is_reported_without_showing_hashes() {
        let hash = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$c2VjcmV0c2VjcmV0c2VjcmV0";
        let table = [
            format!("[[user]]\nname = 'a'\nargon2id = '{hash}'\nadmin = true\n"),
            format!("[[user]]\nname = 'a b'\nargon2id = '{hash}'\n"),
            format!("[[user]]\nname = 'a'\nargon2id = '{hash}'\nnt-hash = 'abc'\n"),
            "[[user]]\nname = 'a'\nargon2id = 'plain secret'\n".to_owned(),
            format!("[[user]]\nname = 'a'\nargon2id = '{hash}\n"),
        ];
        for text in table {
            let error = decode(Path::new("users.toml"), &text).unwrap_err();
            assert!(
                error.starts_with("users.toml:") && !error.contains("secret") && !error.contains("c2Fs"),
                "{error}"
            );
        }
    }

    #[test]
    fn hexadecimal_is_read_strictly() {
        assert_eq!(from_hex(&to_hex(&[0xab; 16])), Some([0xab; 16]));
        assert_eq!(from_hex("AB"), None);
        assert_eq!(from_hex(&"g".repeat(32)), None);
        assert_eq!(from_hex(&"a".repeat(33)), None);
    }
}
