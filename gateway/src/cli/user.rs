//! `fanlight user`: through the service when it runs, else in the file itself.

use std::collections::BTreeSet;
use std::io::{self, BufRead, IsTerminal, Read};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use zeroize::Zeroizing;

use super::Context;
use super::output::Cell;
use crate::api::client::segment;
use crate::api::model::{AddUser, UserInfo};
use crate::api::users::add_user;
use crate::problem::{Code, Problem};
use crate::users::{MAX_PASSWORD, Users};

#[derive(Debug, Subcommand)]
pub(super) enum User {
    Add(Add),
    List(List),
    Remove(Remove),
}

/// Add a user
///
/// Asks for the password on a terminal; otherwise the first line of standard input is the password. It works
/// whether the service runs or not.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fanlight user add anna\n  fanlight user add bob --vm web01 --vm web02 < password-file"
)]
pub(super) struct Add {
    /// Name: letters, digits, `.`, `-` and `_`
    name: String,
    /// Keep no NT hash: the user logs on without NLA only
    #[arg(long)]
    no_nla: bool,
    /// A VM the user may use; repeat it for several. Without it: all VMs
    #[arg(long = "vm", value_name = "VM")]
    vms: Vec<String>,
}

/// List the users
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fanlight user list\n  fanlight user list --json")]
pub(super) struct List {}

/// Remove a user, and end the user's sessions
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fanlight user remove anna")]
pub(super) struct Remove {
    /// The user
    name: String,
}

impl User {
    pub(super) async fn run(self, context: &Context) -> Result<ExitCode, Problem> {
        match self {
            Self::Add(add) => add.run(context).await,
            Self::List(_) => list(context).await,
            Self::Remove(remove) => remove.run(context).await,
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Add {
    async fn run(self, context: &Context) -> Result<(), Problem> {
        let request = AddUser {
            password: read_password(&self.name)?,
            name: self.name,
            nla: self.no_nla.then_some(false),
            vms: (!self.vms.is_empty()).then(|| BTreeSet::from_iter(self.vms).into_iter().collect()),
        };
        let added: UserInfo = match context.client.post("/v1/users", &request).await {
            Err(problem) if problem.code == Code::NoService => {
                let nla = context.config()?.nla;
                offline(context, |users| add_user(users, nla, &request))?
            }
            answer => answer?,
        };
        context.output.value(&added, || format!("user {} added", added.name));
        Ok(())
    }
}

impl Remove {
    async fn run(self, context: &Context) -> Result<(), Problem> {
        match context.client.delete(&format!("/v1/users/{}", segment(&self.name))).await {
            Err(problem) if problem.code == Code::NoService => {
                offline(context, |users| Ok(users.remove(&self.name)?))?;
            }
            answer => answer?,
        }
        context.output.value(&serde_json::json!({ "removed": self.name }), || format!("user {} removed", self.name));
        Ok(())
    }
}

async fn list(context: &Context) -> Result<(), Problem> {
    let users: Vec<UserInfo> = match context.client.get("/v1/users").await {
        Err(problem) if problem.code == Code::NoService => {
            let users = Users::open(context.state.users())?;
            users.book().values().map(|user| UserInfo::from(&**user)).collect()
        }
        answer => answer?,
    };
    let rows = users.iter().map(row).collect();
    context.output.table(&users, &["USER", "NLA", "VMS"], rows);
    Ok(())
}

fn row(user: &UserInfo) -> Vec<Cell> {
    let vms = user.vms.as_ref().map_or_else(|| "all".to_owned(), |vms| vms.join(", "));
    vec![user.name.as_str().into(), (if user.nla { "yes" } else { "no" }).into(), vms.into()]
}

/// Changes the file while no service runs; the lock keeps one from starting meanwhile.
fn offline<T>(context: &Context, change: impl FnOnce(&Users) -> Result<T, Problem>) -> Result<T, Problem> {
    context.state.create()?;
    let _lock = context.state.lock()?;
    change(&Users::open(context.state.users())?)
}

/// The password, from a prompt or the first line of standard input; never from the command line, which others see.
fn read_password(user: &str) -> Result<Zeroizing<String>, Problem> {
    let unreadable = |error: io::Error| Problem::new(Code::Invalid, format!("cannot read the password: {error}"));
    if !io::stdin().is_terminal() {
        return read_line(&mut io::stdin().lock()).map_err(unreadable);
    }
    let ask = |prompt: String| rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(unreadable);
    let password = ask(format!("Password for {user}: "))?;
    if ask("Once more: ".to_owned())? != password {
        return Err(Problem::new(Code::Invalid, "the two passwords differ"));
    }
    Ok(password)
}

fn read_line(input: &mut impl BufRead) -> io::Result<Zeroizing<String>> {
    // Room for all of it from the start: growing would leave copies behind.
    let mut line = Zeroizing::new(String::with_capacity(MAX_PASSWORD + 3));
    let most = u64::try_from(MAX_PASSWORD + 2).unwrap_or(u64::MAX);
    input.take(most).read_line(&mut line)?;
    let end = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(end);
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_password_spaces_included() {
        let read = |text: &str| read_line(&mut text.as_bytes()).unwrap().to_string();
        assert_eq!(read(" a b \nsecond\n"), " a b ");
        assert_eq!(read("windows\r\n"), "windows");
        assert_eq!(read("no end"), "no end");
        assert!(read(&"x".repeat(10_000)).len() > MAX_PASSWORD, "too long stays too long");
    }
}
