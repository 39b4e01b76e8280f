//! The host's end of a bus in the test itself, at a guest whose VM is the test's own, too.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use enhanced_session::class::Class;
use enhanced_session::control::{OfferFlags, PciSlot};
use enhanced_session::endpoint::{ChannelId, Event, Host, HostConfig, SendError, SurfaceId, Transport};
use enhanced_session::message::{Message, Txid};
use enhanced_session::region::Mapping;
use fanlight_tests::scratch;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::Instant;
use uuid::Uuid;
use vmm::{BusMemory, Definition, HostConfig as VmmConfig, Vm};

/// How long anything of a guest may take.
const PATIENCE: Duration = Duration::from_secs(180);
const READ: usize = 64 * 1024;

/// VMs of the test. Dropping it ends their QEMUs.
pub(super) struct Vms {
    folder: PathBuf,
    host: vmm::Host,
}

/// A host that offers a channel of every class.
pub(super) struct OwnHost {
    host: Host<Mapping>,
    stream: UnixStream,
    out: Vec<u8>,
    input: Box<[u8]>,
    channels: BTreeMap<Class, ChannelId>,
    open: BTreeMap<ChannelId, Transport>,
    /// Surfaces that came back.
    pub(super) returned: Vec<SurfaceId>,
}

/// What is said on a channel.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Said {
    Message(Vec<u8>),
    Request(Vec<u8>),
    Fin,
}

impl Vms {
    pub(super) async fn open() -> Result<Self> {
        let folder = scratch::folder("vms")?;
        let host = vmm::Host::open(VmmConfig::new(folder.join("vms"), folder.join("run"))).await?;
        Ok(Self { folder, host })
    }

    pub(super) fn folder(&self) -> &PathBuf {
        &self.folder
    }

    pub(super) async fn start(&self, definition: Definition) -> Result<Vm> {
        let vm = self.host.create(definition).await?;
        vm.start().await?;
        Ok(vm)
    }
}

impl Drop for Vms {
    fn drop(&mut self) {
        for pid in self.host.list().iter().filter_map(|vm| vm.status().pid) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // It may have ended by itself since.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

impl OwnHost {
    /// Connects to a VM's port. Without memory everything has to take the stream.
    pub(super) async fn connect(vm: &Vm, with_memory: bool) -> Result<Self> {
        let connection = vm.bus().connect().await?;
        let memory = connection.memory.filter(|_| with_memory);
        let slot = memory.as_ref().and_then(|memory| PciSlot::from_wire(memory.pci_slot()));
        let map =
            |memory: BusMemory| -> Result<Mapping> { Ok(Mapping::new(&memory, usize::try_from(memory.size())?)?) };
        let mapping = memory.map(map).transpose()?;
        let config = HostConfig { pci_slot: slot, ..HostConfig::new(vm.uuid()) };
        let mut host = Host::new(config, mapping.map(Arc::new), Box::new(random), now());
        let mut channels = BTreeMap::new();
        for class in Class::ALL {
            let surfaces = if class == Class::Video { OfferFlags::SURFACES } else { OfferFlags::default() };
            channels.insert(class, host.offer(class, 0, OfferFlags::ONE_INSTANCE.or(surfaces))?);
        }
        host.handle_port_opened(now());
        let (out, input) = (Vec::new(), vec![0; READ].into_boxed_slice());
        let (open, returned) = (BTreeMap::new(), Vec::new());
        Ok(Self { host, stream: connection.stream, out, input, channels, open, returned })
    }

    /// Waits until the guest has opened every channel; what carries each.
    pub(super) async fn open_all(&mut self) -> Result<BTreeMap<Class, Transport>> {
        self.until("every channel to be open", |own| Ok(own.open.len() == own.channels.len())).await?;
        Ok(self.channels.iter().filter_map(|(class, id)| Some((*class, *self.open.get(id)?))).collect())
    }

    /// Says all of `said` on its channels, on all of them at once, and waits for the answers: each channel has to say what
    /// it heard, in that order.
    pub(super) async fn is_told_back(&mut self, said: BTreeMap<Class, Vec<Said>>) -> Result<()> {
        let mut talks: Vec<Talk> = Vec::new();
        for (class, said) in said {
            let id = *self.channels.get(&class).context("a class that is not offered")?;
            talks.push(Talk { class, id, to_say: said.into(), to_hear: VecDeque::new() });
        }
        self.until("all answers", move |own| {
            for talk in &mut talks {
                talk.go_on(&mut own.host)?;
            }
            Ok(talks.iter().all(Talk::is_over))
        })
        .await
    }

    /// The core, and the channel of a class.
    pub(super) fn channel(&mut self, class: Class) -> Result<(&mut Host<Mapping>, ChannelId)> {
        let id = *self.channels.get(&class).context("a class that is not offered")?;
        Ok((&mut self.host, id))
    }

    /// Carries bytes to the guest and from it until `done`.
    pub(super) async fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            while let Some(event) = self.host.poll_event() {
                self.handle(event)?;
            }
            if done(self)? {
                return Ok(());
            }
            self.write()?;
            let interest =
                if self.out.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
            let wake = self.host.poll_timeout().map_or(deadline, |at| deadline.min(at.into()));
            let ready = tokio::time::timeout_at(wake, self.stream.ready(interest)).await;
            if ready.is_err() {
                ensure!(Instant::now() < deadline, "waited for {what}: {:?}", self.host.statistics());
                self.host.handle_timeout(now());
            }
            self.read()?;
        }
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Opened { id, transport } => drop(self.open.insert(id, transport)),
            Event::SurfaceReturned { surface, .. } => self.returned.push(surface),
            Event::Closed { .. } | Event::Faulted { .. } | Event::Withdrawn { .. } | Event::Disconnected(_) => {
                bail!("the guest did not keep to the rules: {event:?}")
            }
            _ => {}
        }
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        while !self.out.is_empty() || self.host.poll_transmit(now(), &mut self.out) {
            match self.stream.try_write(&self.out) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        if !self.host.wants_bytes() {
            return Ok(());
        }
        match self.stream.try_read(&mut self.input) {
            Ok(0) => bail!("QEMU has closed the port"),
            Ok(count) => self.host.handle_bytes(now(), self.input.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// What is still to be said and heard on a channel.
struct Talk {
    class: Class,
    id: ChannelId,
    to_say: VecDeque<Said>,
    to_hear: VecDeque<Message>,
}

impl Talk {
    fn is_over(&self) -> bool {
        self.to_say.is_empty() && self.to_hear.is_empty()
    }

    fn go_on(&mut self, host: &mut Host<Mapping>) -> Result<()> {
        while let Some(said) = self.to_say.front() {
            let sent = match said.clone() {
                Said::Message(bytes) => host.send(self.id, bytes.clone()).map(|()| Message::Data(bytes)),
                Said::Request(bytes) => {
                    host.request(self.id, bytes.clone()).map(|txid| Message::Completion(txid, bytes))
                }
                Said::Fin => host.finish(self.id).map(|()| Message::Fin),
            };
            match sent {
                Ok(answer) => self.to_hear.push_back(answer),
                Err(SendError::Full) => break,
                Err(error) => return Err(anyhow!(error).context(format!("{said:?} on {}", self.class))),
            }
            self.to_say.pop_front();
        }
        while let Some(heard) = host.receive(self.id) {
            let expected = self.to_hear.pop_front();
            ensure!(expected.as_ref() == Some(&heard), "{} says {}", self.class, shortly(&heard, expected.as_ref()));
        }
        Ok(())
    }
}

/// Messages of a megabyte are not printed.
fn shortly(heard: &Message, expected: Option<&Message>) -> String {
    let one = |message: &Message| match message {
        Message::Data(bytes) => format!("{} bytes", bytes.len()),
        Message::Request(Txid(txid), bytes) => format!("request {txid} of {} bytes", bytes.len()),
        Message::Completion(Txid(txid), bytes) => format!("an answer to {txid} of {} bytes", bytes.len()),
        other => format!("{other:?}"),
    };
    format!("{}, where {} was due", one(heard), expected.map_or("nothing".to_owned(), one))
}

fn now() -> std::time::Instant {
    std::time::Instant::now()
}

fn random() -> u64 {
    Uuid::new_v4().as_u64_pair().0
}
