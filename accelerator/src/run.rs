//! `run`: drives the agent with files, signals and time.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use isthmus_accel_datapath::{Datapath, DatapathError};
use isthmus_api::node_config::{Capture, NodeConfig, Pod, PodName};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{Instant, interval, sleep_until},
};

use crate::{
    admin::{Answer, Question},
    agent::{Agent, Change, Condition, Step},
    config_file::{ConfigFile, ConfigFileError, Look, SETTLE},
    error::{CommandError, render_chain},
    resolve,
    runtime_dir::{Roster, RosterPod, RuntimeDir},
    shadow::Report,
    status::{self, AgentStatus, Mode, Origin},
    watch::DirWatch,
};

/// How often everything is looked at, whatever the kernel reports: addresses of pods come and go
/// without a trace in any directory.
const ROUND: Duration = Duration::from_secs(5);
/// First delay for a pod whose namespace is not there; it doubles up to [`ROUND`].
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// How often reservations of connections that never came about are given up.
const SWEEP: Duration = Duration::from_mins(1);
/// Changes come in bursts: what comes within this time is looked at once.
const COALESCE: Duration = Duration::from_millis(20);

/// Where an agent keeps what outlives it.
#[derive(Clone, Debug)]
pub struct Home {
    /// What the programs may do.
    pub mode: Mode,
    /// Where it says what it knows of its pods, for whoever shows their names.
    pub names: watch::Sender<Arc<Roster>>,
    /// The pins.
    pub pin_dir: PathBuf,
    /// The lock and the names.
    pub runtime_dir: RuntimeDir,
    /// What shadow mode has found, `None` outside of it.
    pub shadow: watch::Receiver<Option<Arc<Report>>>,
}

/// Feeds the datapath until a signal says stop, and leaves it loaded.
///
/// Prints one line to `out` when the pods of the file are loaded.
///
/// # Errors
///
/// Returns [`CommandError`] if it cannot start, most often because the datapath does not take the
/// pods. Later failures are logged and tried again.
pub async fn run<D: Datapath>(
    datapath: D,
    (config_file, config): (ConfigFile, NodeConfig),
    home: Home,
    mut questions: Option<mpsc::Receiver<Question>>,
    out: &mut (dyn Write + Send),
) -> Result<(), CommandError> {
    // Before anything else, so that no signal is missed.
    let mut terminate = signal(SignalKind::terminate()).map_err(CommandError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CommandError::Signals)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(CommandError::Signals)?;

    let mut rounds = Rounds::new(datapath, config_file, home);
    rounds.start(config)?;
    writeln!(out, "{}", rounds.ready_line()?)
        .and_then(|()| out.flush())
        .map_err(CommandError::Output)?;

    let mut next = Instant::now() + rounds.delay();
    let mut sweeps = interval(SWEEP);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hang_up.recv() => {
                tracing::info!("SIGHUP: reading the configuration again");
                rounds.config_file.forget();
                next = Instant::now();
            }
            () = rounds.changed() => {
                rounds.retries = 0;
                next = next.min(Instant::now() + COALESCE);
            }
            Some(question) = asked(&mut questions) => {
                // Whoever asked may have lost patience.
                let _ = question.reply.send(rounds.answer());
            }
            _ = sweeps.tick() => rounds.sweep(),
            () = sleep_until(next) => {
                rounds.round();
                next = Instant::now() + rounds.delay();
            }
        }
    }
    let pin_dir = rounds.home.pin_dir.display();
    tracing::info!(
        "stopped; traffic of the loaded pods goes on to be accelerated, `isthmus-accelerator detach \
         --pin-dir {pin_dir}` ends that"
    );
    Ok(())
}

async fn asked(questions: &mut Option<mpsc::Receiver<Question>>) -> Option<Question> {
    match questions {
        Some(questions) => questions.recv().await,
        None => std::future::pending().await,
    }
}

/// Reads the FILE for the first time, when there is no last good one to fall back to.
///
/// # Errors
///
/// Returns [`ConfigFileError`] if it is bad.
pub async fn read_first(path: PathBuf) -> Result<(ConfigFile, NodeConfig), ConfigFileError> {
    let mut file = ConfigFile::new(path);
    loop {
        match file.look_at(SystemTime::now())? {
            Look::Changed(config) => return Ok((file, config)),
            Look::Unsettled | Look::Unchanged => tokio::time::sleep(SETTLE).await,
        }
    }
}

struct Rounds<D> {
    agent: Agent<D>,
    config_file: ConfigFile,
    has_failed: bool,
    home: Home,
    is_unsettled: bool,
    retired: BTreeSet<PathBuf>,
    retries: u32,
    roster: Option<Roster>,
    watch: Option<DirWatch>,
}

impl<D: Datapath> Rounds<D> {
    fn new(datapath: D, config_file: ConfigFile, home: Home) -> Self {
        let watch = DirWatch::new().inspect_err(|error| {
            tracing::warn!(%error, "files cannot be watched; changes are found every {ROUND:?}");
        });
        Self {
            agent: Agent::new(datapath),
            config_file,
            has_failed: false,
            home,
            is_unsettled: false,
            retired: BTreeSet::new(),
            retries: 0,
            roster: None,
            watch: watch.ok(),
        }
    }

    fn start(&mut self, config: NodeConfig) -> Result<(), DatapathError> {
        self.adopt(config);
        self.look_up();
        let step = self.agent.converge()?;
        self.report(&step);
        self.settle(step.failure.as_ref());
        // With the pods loaded, so that there is no moment in which nobody takes their connections.
        self.retire_others();
        self.follow();
        Ok(())
    }

    fn round(&mut self) {
        self.retries = self.retries.saturating_add(1);
        match self.config_file.look_at(SystemTime::now()) {
            Ok(Look::Changed(config)) => {
                self.is_unsettled = false;
                self.adopt(config);
            }
            Ok(Look::Unsettled) => self.is_unsettled = true,
            Ok(Look::Unchanged) => self.is_unsettled = false,
            Err(error) => self.refuse(&error),
        }
        self.look_up();
        match self.agent.converge() {
            Ok(step) => {
                self.report(&step);
                self.settle(step.failure.as_ref());
                self.retire_others();
            }
            Err(error) => self.fail(&error),
        }
        self.follow();
    }

    fn adopt(&mut self, config: NodeConfig) {
        tracing::info!(file = %self.config_file.path().display(), pods = config.pods.len(), "configuration read");
        for (pod, notice) in config
            .pods
            .iter()
            .flat_map(|(name, pod)| pod.notices.iter().map(move |notice| (name, notice)))
        {
            tracing::warn!(%pod, annotation = notice.annotation, "{}", notice.effect);
        }
        let is_shadow = self.home.mode == Mode::Shadow;
        if !is_shadow && !self.agent.datapath().serves_virtual_machines() {
            for pod in with_virtual_machines(&config) {
                tracing::warn!(%pod, "what its virtual machines send stays with iptables: this kernel is older than 6.6");
            }
        }
        self.agent.handle_config(config);
    }

    fn refuse(&mut self, error: &ConfigFileError) {
        self.is_unsettled = false;
        tracing::error!(
            "{}; the last good configuration stays in force",
            render_chain(error)
        );
    }

    fn look_up(&mut self) {
        match resolve::look_up(self.agent.wanted()) {
            Ok(lookups) => self.agent.handle_lookups(lookups),
            Err(error) => tracing::error!(%error, "network namespaces cannot be looked at"),
        }
    }

    fn settle(&mut self, failure: Option<&DatapathError>) {
        match failure {
            Some(error) => self.fail(error),
            None => self.has_failed = false,
        }
    }

    fn fail(&mut self, error: &DatapathError) {
        self.has_failed = true;
        let chain = render_chain(error);
        tracing::error!("{chain}; pods that are not loaded are left to iptables");
    }

    fn retire_others(&mut self) {
        let retired = match self.agent.retire_others() {
            Ok(retired) => retired,
            Err(error) => return tracing::warn!("{}", render_chain(&error)),
        };
        for row in &retired {
            if !self.retired.contains(&row.pin_dir) {
                let (pins, sockets) = (row.pin_dir.display(), row.sockets);
                tracing::info!(%pins, sockets, "taken over from version {}; it serves its sockets until they close", row.version);
            }
        }
        let left: BTreeSet<PathBuf> = retired.into_iter().map(|row| row.pin_dir).collect();
        for pins in self.retired.difference(&left) {
            tracing::info!(pins = %pins.display(), "removed: its last socket is closed");
        }
        self.retired = left;
    }

    fn sweep(&mut self) {
        match self.agent.sweep() {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "connections that never came about are forgotten"),
            Err(error) => tracing::warn!("{}", render_chain(&error)),
        }
    }

    fn report(&mut self, step: &Step) {
        for change in &step.changes {
            log_change(change);
        }
        if step.ops > 0 {
            tracing::info!(operations = step.ops, "maps changed");
        }
        if !step.changes.is_empty() {
            self.retries = 0;
        }
        self.write_roster();
    }

    fn write_roster(&mut self) {
        let roster = roster(self.config_file.path().to_owned(), &self.agent);
        if self.roster.as_ref() == Some(&roster) {
            return;
        }
        self.home.names.send_replace(Arc::new(roster.clone()));
        match self.home.runtime_dir.write_roster(&roster) {
            Ok(()) => self.roster = Some(roster),
            Err(error) => {
                let error = render_chain(&error);
                tracing::warn!("{error}; `status` shows numbers instead of names");
            }
        }
    }

    fn follow(&mut self) {
        let netns = self.agent.wanted();
        if let Some(watch) = &mut self.watch {
            let files = netns.keys().map(PathBuf::as_path);
            watch.follow(std::iter::once(self.config_file.path()).chain(files));
        }
    }

    async fn changed(&self) {
        match &self.watch {
            Some(watch) => watch.changed().await,
            None => std::future::pending().await,
        }
    }

    fn delay(&self) -> Duration {
        if self.is_unsettled {
            return SETTLE;
        }
        if self.agent.is_waiting() || self.has_failed {
            let factor = 2_u32.saturating_pow(self.retries);
            return FIRST_RETRY.saturating_mul(factor).min(ROUND);
        }
        ROUND
    }

    fn answer(&self) -> Answer {
        let roster = self.roster.clone().unwrap_or_default();
        let origin = Origin {
            agent: AgentStatus {
                is_running: true,
                pid: Some(std::process::id()),
            },
            mode: self.home.mode,
            pin_dir: self.home.pin_dir.clone(),
        };
        let status = status::collect(self.agent.datapath(), &roster, origin);
        Answer {
            is_ready: !self.has_failed,
            shadow: self.home.shadow.borrow().clone(),
            status: status.map_err(|error| render_chain(&error)),
        }
    }

    fn ready_line(&self) -> Result<String, DatapathError> {
        let conditions = self.agent.conditions().values();
        let accelerated = conditions
            .filter(|condition| matches!(condition, Condition::Accelerated(_)))
            .count();
        let programs = self.agent.datapath().programs()?;
        let attached = programs
            .iter()
            .filter(|program| program.is_attached)
            .count();
        let idle = self.agent.conditions().len() - accelerated;
        let pin_dir = self.home.pin_dir.display();
        Ok(format!(
            "ready: {accelerated} pods, {attached} programs, {idle} left to iptables, pinned under {pin_dir}"
        ))
    }
}

fn with_virtual_machines(config: &NodeConfig) -> impl Iterator<Item = &PodName> {
    let has_some = |pod: &Pod| match &pod.capture {
        Capture::Accelerated(policy) => !policy.virtual_interfaces.is_empty(),
        Capture::LeftAlone => false,
    };
    let pods = config.pods.iter().filter(move |(_, pod)| has_some(pod));
    pods.map(|(name, _)| name)
}

fn log_change(change: &Change) {
    match &change.condition {
        None | Some(Condition::Accelerated(_)) => tracing::info!("{change}"),
        Some(
            Condition::LeftAlone { .. } | Condition::Refused { .. } | Condition::Waiting { .. },
        ) => tracing::warn!("{change}"),
    }
}

fn roster<D: Datapath>(config: PathBuf, agent: &Agent<D>) -> Roster {
    let mut roster = Roster {
        config,
        pods: BTreeMap::new(),
    };
    for (name, pod) in &agent.config().pods {
        let Some(condition) = agent.conditions().get(name) else {
            continue;
        };
        let namespace = match condition {
            Condition::Accelerated(namespace) => Some(namespace),
            Condition::LeftAlone { .. } | Condition::Refused { .. } | Condition::Waiting { .. } => {
                None
            }
        };
        let entry = RosterPod {
            addresses: namespace
                .map(|found| found.addrs.iter().copied().collect())
                .unwrap_or_default(),
            condition: condition.word().to_owned(),
            netns: pod.netns.clone(),
            netns_cookie: namespace.map(|found| found.cookie),
            reason: condition.reason().map(str::to_owned),
        };
        roster.pods.insert(name.to_string(), entry);
    }
    roster
}
