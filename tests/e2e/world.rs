//! What the journeys share: one gateway, one user, and guests that stay booted.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow};
use fanlight_tests::client::{Client, Connect, SEEN};
use fanlight_tests::environment::environment;
use fanlight_tests::gateway::{Gateway, Person};
use fanlight_tests::guest::{Guest, Machine, at_prompt};
use fanlight_tests::headless::touch::pdu::{CsReadyFlags, CsReadyPdu, RdpInputProtocolVersion};
use fanlight_tests::headless::{Decode, Options};
use fanlight_tests::keys::keysym;
use fanlight_tests::picture::{Likeness, Picture};
use fanlight_tests::text::{Font, Screen};
use fanlight_tests::wait::{Look, wait_until};

/// The guests that are lent out, each started when somebody wants it.
const GUESTS: [(&str, Machine); 5] = [
    ("one", USUAL),
    ("two", USUAL),
    ("rings", Machine { network: true, ..USUAL }),
    (
        "stream",
        Machine {
            network: true,
            memory: None,
            parameters: "fanlight.transport=stream",
            tables: "[session]\ninput = \"bus\"",
        },
    ),
    ("hardware", Machine { tables: "[bus]\nmemory = 0\n[session]\ninput = \"hardware\"", ..USUAL }),
];
const USUAL: Machine = Machine { network: false, memory: None, tables: "", parameters: "" };
/// Those that any journey may have.
const USUAL_ONES: Range<usize> = 0..2;
const RINGS: Range<usize> = 2..3;
const STREAM: Range<usize> = 3..4;
const HARDWARE: Range<usize> = 4..5;
/// How often a command is typed, and how long it may take to be seen, before it counts as not typed.
const TRIES: usize = 4;
const ECHO: Duration = Duration::from_secs(10);

/// Everything that is shared. Nothing of it exists before somebody wants it.
#[derive(Default)]
pub(crate) struct World {
    place: OnceLock<Result<Place, String>>,
}

struct Place {
    gateway: Gateway,
    person: Person,
    guests: Vec<Guest>,
    lent: Mutex<[bool; GUESTS.len()]>,
    returned: Condvar,
}

/// A guest at its prompt that nobody else uses now, and who connects to it.
pub(crate) struct Desk<'a> {
    pub(crate) guest: &'a Guest,
    pub(crate) person: &'a Person,
    pub(crate) gateway: &'a Gateway,
}

/// Guests that are lent until this is dropped.
struct Loan<'a, const COUNT: usize> {
    place: &'a Place,
    numbers: [usize; COUNT],
    /// Whether the next one may find them as they are.
    in_order: bool,
}

impl World {
    /// Lends a booted guest. After a failure it is started anew for the next.
    pub(crate) fn on_guest(&self, go: impl FnOnce(&Desk<'_>) -> Result<()>) -> Result<()> {
        self.place()?.lend(USUAL_ONES, |[desk]| go(desk))
    }

    /// Lends two booted guests.
    pub(crate) fn on_two_guests(&self, go: impl FnOnce(&Desk<'_>, &Desk<'_>) -> Result<()>) -> Result<()> {
        self.place()?.lend(USUAL_ONES, |[first, second]| go(first, second))
    }

    /// Lends the guest with a network whose bus has rings. Its input takes the better way.
    pub(crate) fn on_rings(&self, go: impl FnOnce(&Desk<'_>) -> Result<()>) -> Result<()> {
        self.place()?.lend(RINGS, |[desk]| go(desk))
    }

    /// Lends the guest with a network whose agent uses the stream only. Its input takes the bus or none.
    pub(crate) fn on_stream(&self, go: impl FnOnce(&Desk<'_>) -> Result<()>) -> Result<()> {
        self.place()?.lend(STREAM, |[desk]| go(desk))
    }

    /// Lends the guest whose bus has no memory, and whose input takes virtual hardware only.
    pub(crate) fn on_hardware(&self, go: impl FnOnce(&Desk<'_>) -> Result<()>) -> Result<()> {
        self.place()?.lend(HARDWARE, |[desk]| go(desk))
    }

    fn place(&self) -> Result<&Place> {
        let place = self.place.get_or_init(|| Place::open().map_err(|error| format!("{error:#}")));
        place.as_ref().map_err(|error| anyhow!("no shared gateway: {error}"))
    }
}

impl Place {
    fn open() -> Result<Self> {
        let gateway = Gateway::start()?;
        let person = gateway.add_user("demo", "spoken-friend-7", None)?;
        let guests = GUESTS.iter().map(|(name, machine)| gateway.create_guest_on(name, *machine));
        let guests = guests.collect::<Result<_>>()?;
        Ok(Self { gateway, person, guests, lent: Mutex::default(), returned: Condvar::new() })
    }

    fn lend<const COUNT: usize>(
        &self,
        among: Range<usize>,
        go: impl FnOnce(&[Desk<'_>; COUNT]) -> Result<()>,
    ) -> Result<()> {
        let mut loan = self.take(among);
        let desks = loan.numbers.map(|number| self.desk(number));
        desks.iter().try_for_each(Desk::make_ready)?;
        go(&desks)?;
        loan.in_order = true;
        Ok(())
    }

    /// Waits until so many of these guests are free.
    fn take<const COUNT: usize>(&self, among: Range<usize>) -> Loan<'_, COUNT> {
        let lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        let too_few = |lent: &mut [bool; GUESTS.len()]| free(lent, &among).count() < COUNT;
        let mut lent = self.returned.wait_while(lent, too_few).unwrap_or_else(PoisonError::into_inner);
        let numbers = std::array::from_fn(|_| {
            let number = free(&*lent, &among).next().expect("enough are free");
            lent[number] = true;
            number
        });
        Loan { place: self, numbers, in_order: false }
    }

    fn desk(&self, number: usize) -> Desk<'_> {
        Desk { guest: &self.guests[number], person: &self.person, gateway: &self.gateway }
    }
}

fn free(lent: &[bool], among: &Range<usize>) -> impl Iterator<Item = usize> {
    among.clone().filter(|number| !lent[*number])
}

impl<const COUNT: usize> Drop for Loan<'_, COUNT> {
    fn drop(&mut self) {
        if !self.in_order {
            // Whoever comes next finds them stopped and starts them. The failure that led here is told already.
            self.numbers.iter().for_each(|number| drop(self.place.guests[*number].request("stop")));
        }
        let mut lent = self.place.lent.lock().unwrap_or_else(PoisonError::into_inner);
        self.numbers.iter().for_each(|number| lent[*number] = false);
        self.place.returned.notify_all();
    }
}

impl Desk<'_> {
    /// A client that asks for this guest by `vm\user`.
    pub(crate) fn connect(&self) -> Connect {
        self.connect_as(&format!("{}\\{}", self.guest.name(), self.person.name))
    }

    /// A client that logs on under that name.
    pub(crate) fn connect_as(&self, user: &str) -> Connect {
        Connect::to(self.gateway.address(), user, &self.person.password)
    }

    /// A client without a window and with ten fingers that asks for this guest.
    pub(crate) fn headless(&self, size: (u16, u16), touch: CsReadyFlags) -> Options {
        Options {
            address: self.gateway.address(),
            user: self.person.name.clone(),
            password: self.person.password.clone(),
            vm: Some(self.guest.name().to_owned()),
            size,
            decode: Decode::Rectangles,
            receive_buffer: None,
            touch: Some(CsReadyPdu::new(touch, RdpInputProtocolVersion::V300, 10)),
        }
    }

    fn make_ready(&self) -> Result<()> {
        if self.guest.state()? != "running" {
            self.guest.request("start")?;
        }
        self.guest.wait_for_prompt()
    }
}

/// The letters of the guests' consoles.
pub(crate) fn font() -> Result<&'static Font> {
    Ok(&environment()?.font)
}

/// A word that no other test writes.
pub(crate) fn new_word() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // No letter twice in a row: FreeRDP 2 takes that for a key that repeats itself when it lags behind.
    format!("w{}o{}r{}d", number / 100, number / 10 % 10, number % 10)
}

/// Types a command that writes a new word, and waits until the guest has done it. Returns the word.
pub(crate) fn echo_new_word(client: &Client, guest: &Guest) -> Result<String> {
    let word = new_word();
    enter(client, &format!("echo {word}"))?;
    wait_for_line(client, guest, &word)?;
    Ok(word)
}

/// Types a command of one line and enters it, as a careful person does: one that looks wrong is typed again.
///
/// The guest repeats a key that is held for a quarter of a second, and on a busy machine every key may seem so.
pub(crate) fn enter(client: &Client, command: &str) -> Result<()> {
    let shown = |screen: &Screen| screen.last().ends_with(command);
    let mut last = anyhow!("never typed");
    for _ in 0..TRIES {
        client.type_text(command)?;
        match client.wait_for_screen_within(ECHO, font()?, command, shown) {
            Ok(_) => return client.type_text("\n"),
            Err(error) => last = error,
        }
        hold_control_and(client, 'u')?;
    }
    Err(last)
}

/// Waits until the client shows `line` above a prompt, exactly as the guest does.
pub(crate) fn wait_for_line(client: &Client, guest: &Guest, line: &str) -> Result<Picture> {
    let what = format!("a line `{line}` and a prompt");
    client.wait_for_screen(font()?, &what, |screen| screen.has_line(line) && at_prompt(screen))?;
    client.wait_for_picture(Likeness::Exact, || guest.picture())
}

/// Presses Ctrl-C until there is a prompt: a loop goes on when it meets one of its commands that is done anyway.
pub(crate) fn interrupt(client: &Client) -> Result<()> {
    wait_until(SEEN, "Ctrl-C to end the program", || {
        hold_control_and(client, 'c')?;
        let prompt = client.wait_for_screen_within(Duration::from_secs(2), font()?, "the prompt", at_prompt);
        Ok(prompt.map_or_else(|error| Look::NotYet(error.to_string()), |_| Look::Found(())))
    })
}

fn hold_control_and(client: &Client, letter: char) -> Result<()> {
    client.press(keysym::CONTROL)?;
    client.tap(u32::from(letter))?;
    client.release(keysym::CONTROL)
}
