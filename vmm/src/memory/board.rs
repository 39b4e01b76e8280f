//! Where drivers, the controller and everybody else meet over memory: an account for each VM, and the pool.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use uuid::Uuid;

use super::pool::{self, HostMemory, Occupied, PoolConfig};
use super::{MemoryReport, MemorySettings, Sample, Tuning};
use crate::definition::{Definition, InvalidDefinition, MemoryDevices};
use crate::lifecycle::{Message, Status, VmState};
use crate::memory::{HostMemoryView, VmMemoryView};

/// How old a report is at most when it comes in: from the guest through the bus to us.
const REPORT_DELAY: Duration = Duration::from_secs(1);

/// How the memory of a host's VMs is managed.
#[derive(Debug, Clone, Copy)]
pub struct MemoryConfig {
    /// How much there is.
    pub pool: PoolConfig,
    /// How the policy decides.
    pub tuning: Tuning,
    /// How often it does.
    pub tick: Duration,
}

/// What is known of the memory of all VMs of a host.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) config: MemoryConfig,
    accounts: Mutex<BTreeMap<Uuid, Weak<Account>>>,
    /// What the host had at the last tick.
    view: Mutex<Option<HostMemoryView>>,
    wake: Arc<Notify>,
    admitting: Mutex<()>,
}

/// What is known of the memory of one VM.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) id: Uuid,
    terms: Mutex<Terms>,
    status: watch::Receiver<Status>,
    /// The VM's driver, as long as somebody has a handle of the VM.
    pub(crate) driver: mpsc::WeakSender<Message>,
    /// Whether its start-up memory was found to fit.
    admitted: AtomicBool,
}

/// What a VM's memory is, from one start to the next.
#[derive(Debug, Clone)]
struct Terms {
    /// What it has when nothing changes that, in bytes.
    fixed: u64,
    /// None: nothing does.
    dynamic: Option<Arc<Dynamic>>,
}

/// Of a VM whose memory follows its guest's need.
#[derive(Debug)]
struct Dynamic {
    devices: MemoryDevices,
    settings: Mutex<MemorySettings>,
    /// Counts the starts of its guest.
    run: AtomicU64,
    /// What an agent in the guest reported last, and in which run.
    agent: Mutex<Option<(u64, Sample)>>,
    /// What the controller saw and decided at the last tick.
    view: Mutex<Option<VmMemoryView>>,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { pool: PoolConfig::default(), tuning: Tuning::default(), tick: Duration::from_secs(1) }
    }
}

impl Board {
    pub(crate) fn new(config: MemoryConfig) -> Self {
        Self {
            config,
            accounts: Mutex::default(),
            view: Mutex::default(),
            wake: Arc::default(),
            admitting: Mutex::default(),
        }
    }

    /// Opens the account of a VM; it is there as long as somebody keeps it.
    pub(crate) fn open(
        &self,
        definition: &Definition,
        status: watch::Receiver<Status>,
        driver: mpsc::WeakSender<Message>,
    ) -> Arc<Account> {
        let account = Arc::new(Account {
            id: definition.uuid,
            terms: Mutex::new(Terms::of(definition)),
            status,
            driver,
            admitted: AtomicBool::new(false),
        });
        lock(&self.accounts).insert(account.id, Arc::downgrade(&account));
        account
    }

    /// All accounts.
    pub(crate) fn accounts(&self) -> Vec<Arc<Account>> {
        let mut accounts = lock(&self.accounts);
        accounts.retain(|_, account| account.strong_count() > 0);
        accounts.values().filter_map(Weak::upgrade).collect()
    }

    /// Keeps room for a VM's start-up memory, or says why there is none.
    pub(crate) fn admit(&self, account: &Account) -> Result<(), String> {
        let Some(startup) = account.settings().map(|settings| settings.startup) else { return Ok(()) };
        // A VM that goes on in another QEMU has its memory already.
        if account.is_admitted() {
            return Ok(());
        }
        let accounts = self.accounts();
        // One at a time: two VMs must not be given the same room.
        let _one = lock(&self.admitting);
        let others = || accounts.iter().filter(|other| other.id != account.id && other.is_admitted());
        let least: u64 = others().filter_map(|other| other.least()).sum();
        let pool = match HostMemory::read() {
            Ok(host) => self.config.pool.pool(host, occupied(others())),
            // The system does not tell: nobody is kept from starting for that.
            Err(_) => u64::MAX,
        };
        if least.saturating_add(startup) > pool {
            return Err(format!(
                "its start-up memory of {} MiB does not fit: VMs with dynamic memory share {} MiB, and those that are on \
                 cannot give back {} MiB of it",
                startup >> 20,
                pool >> 20,
                least >> 20
            ));
        }
        account.admitted.store(true, Ordering::Relaxed);
        self.wake.notify_one();
        Ok(())
    }

    /// Has the controller look: something is on that was not.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Rings when there may be something to do, and when the host has ended.
    pub(crate) fn bell(&self) -> Arc<Notify> {
        self.wake.clone()
    }

    /// What the host had at the last tick; none while no VM has dynamic memory and is on.
    pub(crate) fn view(&self) -> Option<HostMemoryView> {
        *lock(&self.view)
    }

    pub(crate) fn show(&self, view: Option<HostMemoryView>) {
        *lock(&self.view) = view;
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

impl Account {
    /// What the VM's owner wants now; none when its memory is always the same.
    pub(crate) fn settings(&self) -> Option<MemorySettings> {
        self.dynamic().map(|dynamic| *lock(&dynamic.settings))
    }

    /// Whose devices change the memory.
    pub(crate) fn devices(&self) -> Option<MemoryDevices> {
        self.dynamic().map(|dynamic| dynamic.devices)
    }

    /// The VM is what `definition` says from now on; what is known of its guest stays where it is of the same kind.
    pub(crate) fn take_terms(&self, definition: &Definition) {
        let (mut terms, new) = (lock(&self.terms), Terms::of(definition));
        match (&terms.dynamic, &new.dynamic) {
            (Some(old), Some(new)) if old.devices == new.devices => *lock(&old.settings) = *lock(&new.settings),
            _ => terms.dynamic = new.dynamic,
        }
        terms.fixed = new.fixed;
    }

    /// Takes other settings.
    pub(crate) fn change(&self, wanted: Option<MemorySettings>) -> Result<(), InvalidDefinition> {
        let (Some(dynamic), Some(wanted)) = (self.dynamic(), wanted) else {
            return Err(InvalidDefinition::new(
                "its memory is always the same; start it with a `[memory]` table first",
            ));
        };
        *lock(&dynamic.settings) = wanted;
        Ok(())
    }

    /// The guest starts, or starts over.
    pub(crate) fn begin_run(&self) {
        if let Some(dynamic) = self.dynamic() {
            dynamic.run.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The VM is off.
    pub(crate) fn release(&self) {
        self.admitted.store(false, Ordering::Relaxed);
    }

    /// Which start of the guest this is.
    pub(crate) fn run(&self) -> u64 {
        self.dynamic().map_or(0, |dynamic| dynamic.run.load(Ordering::Relaxed))
    }

    /// Takes in what the agent in the guest says.
    pub(crate) fn report(&self, report: MemoryReport) {
        let Some(dynamic) = self.dynamic() else { return };
        let now = Instant::now();
        let sample = Sample { taken: now.checked_sub(REPORT_DELAY).unwrap_or(now), report };
        *lock(&dynamic.agent) = Some((self.run(), sample));
    }

    /// What the agent said last in this run.
    pub(crate) fn agent(&self) -> Option<Sample> {
        let (run, sample) = (*lock(&self.dynamic()?.agent))?;
        (run == self.run()).then_some(sample)
    }

    pub(crate) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Whether the VM has memory of the host.
    pub(crate) fn is_on(&self) -> bool {
        let status = self.status.borrow();
        let on = matches!(status.state, VmState::Starting | VmState::Running | VmState::Paused | VmState::Stopping);
        on || status.pid.is_some()
    }

    pub(crate) fn view(&self) -> Option<VmMemoryView> {
        *lock(&self.dynamic()?.view)
    }

    pub(crate) fn show(&self, view: Option<VmMemoryView>) {
        if let Some(dynamic) = self.dynamic() {
            *lock(&dynamic.view) = view;
        }
    }

    /// What it has in any case; none when that follows its guest's need.
    fn fixed(&self) -> Option<u64> {
        let terms = lock(&self.terms);
        terms.dynamic.is_none().then_some(terms.fixed)
    }

    fn dynamic(&self) -> Option<Arc<Dynamic>> {
        lock(&self.terms).dynamic.clone()
    }

    fn is_admitted(&self) -> bool {
        let running = self.status.borrow().pid.is_some();
        running || (self.dynamic().is_none() && self.is_on()) || self.admitted.load(Ordering::Relaxed)
    }

    /// What nobody can take from it, in bytes; none when it does not share.
    fn least(&self) -> Option<u64> {
        let startup = self.settings()?.startup;
        Some(self.view().map_or(startup, |view| view.least))
    }
}

impl Terms {
    fn of(definition: &Definition) -> Self {
        let dynamic = definition.dynamic_memory.zip(definition.memory_settings());
        let dynamic = dynamic.map(|(dynamic, settings)| Arc::new(Dynamic::new(dynamic.devices, settings)));
        Self { fixed: u64::from(definition.memory) << 20, dynamic }
    }
}

impl Dynamic {
    fn new(devices: MemoryDevices, settings: MemorySettings) -> Self {
        Self {
            devices,
            settings: Mutex::new(settings),
            run: AtomicU64::new(0),
            agent: Mutex::default(),
            view: Mutex::default(),
        }
    }
}

/// What the VMs that are on have of the host's memory.
pub(crate) fn occupied<'a>(accounts: impl Iterator<Item = &'a Arc<Account>>) -> Occupied {
    accounts.fold(Occupied::default(), |sum, account| {
        let resident = account.status().pid.map_or(0, pool::resident);
        let fixed = account.fixed().unwrap_or(0);
        Occupied { resident: sum.resident + resident, fixed: sum.fixed + fixed }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
