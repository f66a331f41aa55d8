//! The agent as a state machine: what it was told, what the kernel holds, and one step from the one
//! to the other. No clock, no file, no log: whoever drives it does those.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use isthmus_accel_abi::HANDSHAKE_MAX_AGE_SECONDS;
use isthmus_accel_core::{MapOp, Plan, ResolvedPod, diff, plan};
use isthmus_accel_datapath::{Datapath, DatapathError, RetiredRow};
use isthmus_api::node_config::{Capture, NodeConfig, Pod, PodName, TrafficPolicy};

use crate::{
    error::render_chain,
    resolve::{Lookups, Namespace, Wish},
};

/// Keeps the datapath as the configuration and the network namespaces say.
///
/// Feed it with [`Agent::handle_config`] and [`Agent::handle_lookups`], then call
/// [`Agent::converge`]. Every failure leaves traffic where it is: at worst on iptables.
#[derive(Debug)]
pub struct Agent<D> {
    conditions: BTreeMap<PodName, Condition>,
    config: NodeConfig,
    datapath: D,
    namespaces: BTreeMap<PathBuf, Sighting>,
}

#[derive(Clone, Debug)]
enum Sighting {
    Found(Namespace),
    Lost { reason: String },
}

/// What the agent does about one pod of the configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Condition {
    /// Its traffic is captured.
    Accelerated(Namespace),
    /// Left to iptables because its annotations ask for what the accelerator does not do.
    LeftAlone {
        /// Why, as half a sentence.
        reason: String,
    },
    /// Left to iptables because it does not fit beside the other pods.
    Refused {
        /// Why, as half a sentence.
        reason: String,
    },
    /// Left to iptables until its network namespace is found, and takes the link for what arrives.
    Waiting {
        /// What is missing, as half a sentence.
        reason: String,
    },
}

impl Condition {
    /// Returns the one word that `status`, logs and metrics use.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Accelerated(_) => "accelerated",
            Self::LeftAlone { .. } => "left-alone",
            Self::Refused { .. } => "refused",
            Self::Waiting { .. } => "waiting",
        }
    }

    /// Returns why the pod is not accelerated, `None` if it is.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Accelerated(_) => None,
            Self::LeftAlone { reason } | Self::Refused { reason } | Self::Waiting { reason } => {
                Some(reason)
            }
        }
    }
}

/// One thing that happened to a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// What became of it, `None` if it is no longer in the configuration.
    pub condition: Option<Condition>,
    /// Which pod.
    pub pod: PodName,
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pod = &self.pod;
        match &self.condition {
            None => write!(formatter, "pod {pod} is no longer in the configuration"),
            Some(Condition::Accelerated(namespace)) => {
                let addrs: Vec<String> = namespace.addrs.iter().map(ToString::to_string).collect();
                write!(
                    formatter,
                    "pod {pod} is accelerated (netns cookie {}, ",
                    namespace.cookie
                )?;
                write!(formatter, "{})", addrs.join(", "))
            }
            Some(other) => {
                let reason = other.reason().unwrap_or_default();
                write!(
                    formatter,
                    "pod {pod} is left to iptables ({}): {reason}",
                    other.word()
                )
            }
        }
    }
}

/// What one step did.
#[derive(Debug, Default)]
pub struct Step {
    /// What is new about the pods.
    pub changes: Vec<Change>,
    /// Why a namespace or an interface took no link, or not what goes with it, or why listeners were not found, the
    /// first one if there were several. A pod that appears is left to iptables if its namespace did not; the
    /// others are served.
    pub failure: Option<DatapathError>,
    /// Operations applied to the datapath.
    pub ops: usize,
}

impl<D: Datapath> Agent<D> {
    /// Starts with no pods. Nothing is applied before [`Agent::converge`].
    pub fn new(datapath: D) -> Self {
        Self {
            conditions: BTreeMap::new(),
            config: NodeConfig::default(),
            datapath,
            namespaces: BTreeMap::new(),
        }
    }

    /// Replaces the configuration.
    pub fn handle_config(&mut self, config: NodeConfig) {
        self.config = config;
        let wanted = self.wanted();
        self.namespaces.retain(|path, _| wanted.contains_key(path));
    }

    /// Returns the paths to look behind, and what for.
    #[must_use]
    pub fn wanted(&self) -> BTreeMap<PathBuf, Wish> {
        let mut wanted = BTreeMap::new();
        for pod in self.config.pods.values() {
            if let Capture::Accelerated(policy) = &pod.capture {
                let wish: &mut Wish = wanted.entry(pod.netns.clone()).or_default();
                *wish = wish_of(policy).max(*wish);
            }
        }
        wanted
    }

    /// Takes in what was found. Paths that are no longer wanted are ignored.
    pub fn handle_lookups(&mut self, lookups: Lookups) {
        let wanted = self.wanted();
        for (path, lookup) in lookups
            .into_iter()
            .filter(|(path, _)| wanted.contains_key(path))
        {
            let sighting = match lookup {
                Ok(namespace) => Sighting::Found(namespace),
                Err(error) => {
                    let is_known = matches!(self.namespaces.get(&path), Some(Sighting::Found(_)));
                    if is_known && error.is_inconclusive() {
                        continue;
                    }
                    Sighting::Lost {
                        reason: render_chain(&error),
                    }
                }
            };
            self.namespaces.insert(path, sighting);
        }
    }

    /// Tells whether a pod waits for its network namespace.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.conditions
            .values()
            .any(|condition| matches!(condition, Condition::Waiting { .. }))
    }

    /// Returns what became of each pod of the configuration.
    #[must_use]
    pub fn conditions(&self) -> &BTreeMap<PodName, Condition> {
        &self.conditions
    }

    /// Returns the configuration in force.
    #[must_use]
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// Returns the datapath.
    #[must_use]
    pub fn datapath(&self) -> &D {
        &self.datapath
    }

    /// Gives up what connections that never came about have reserved. See [`Datapath::sweep`].
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError`] if a map cannot be read or written.
    pub fn sweep(&mut self) -> Result<usize, DatapathError> {
        self.datapath
            .sweep(Duration::from_secs(HANDSHAKE_MAX_AGE_SECONDS))
    }

    /// Takes new traffic over from other versions. See [`Datapath::retire_others`].
    ///
    /// # Errors
    ///
    /// Returns [`DatapathError`] for what could not be taken over or removed.
    pub fn retire_others(&mut self) -> Result<Vec<RetiredRow>, DatapathError> {
        self.datapath.retire_others()
    }

    /// Makes the datapath hold what it should, touching nothing that is right.
    ///
    /// # Errors
    ///
    /// Returns the first [`DatapathError`] that is about more than one pod. What was applied until then is
    /// safe to leave and the next call goes on from there.
    pub fn converge(&mut self) -> Result<Step, DatapathError> {
        let Plan { refused, mut state } = plan(&self.resolved());
        if !self.datapath.serves_virtual_machines() {
            state.virtual_links.clear();
        }
        self.datapath.locate(self.located());
        let loaded = self.datapath.loaded()?;
        let mut applied = self.apply(&diff(&state, &loaded))?;
        let unfound = self.datapath.find_listeners().err();
        self.leave_wayless(&mut applied)?;
        let Applied {
            failure,
            ops,
            unlinked,
        } = applied;
        let failure = failure.or(unfound);

        let condition = |(name, pod): (&PodName, &Pod)| {
            let reason = refused.get(name).map(ToString::to_string);
            let refused = reason.map(|reason| Condition::Refused { reason });
            let condition = refused.unwrap_or_else(|| self.condition_of(pod, &unlinked));
            (name.clone(), condition)
        };
        let conditions = self.config.pods.iter().map(condition).collect();
        let changes = changes(&self.conditions, &conditions);
        self.conditions = conditions;
        Ok(Step {
            changes,
            failure,
            ops,
        })
    }

    // A pod whose namespace takes no link is not captured: what leaves it would be, and what arrives not.
    fn apply(&mut self, ops: &[MapOp]) -> Result<Applied, DatapathError> {
        let mut applied = Applied::default();
        let mut refused = BTreeMap::new();
        for op in ops {
            if let MapOp::PutPod { netns_cookie, .. } = op
                && let Some(reason) = refused.remove(netns_cookie)
            {
                applied.unlinked.insert(*netns_cookie, reason);
                continue;
            }
            match (op, self.datapath.apply(op)) {
                (_, Ok(())) => applied.ops += 1,
                (MapOp::AttachNetns { netns_cookie }, Err(error)) => {
                    refused.insert(*netns_cookie, render_chain(&error));
                    applied.failure.get_or_insert(error);
                }
                // What is left in its namespace, or not there for its virtual machines, is tried again, and keeps no
                // other pod waiting.
                (
                    MapOp::AttachVirtual(_) | MapOp::DetachVirtual(_) | MapOp::DetachNetns { .. },
                    Err(error),
                ) => {
                    applied.failure.get_or_insert(error);
                }
                (_, Err(error)) => return Err(error),
            }
        }
        Ok(applied)
    }

    // What a sidecar dials for its clients does not come back to it: such a pod is better off with iptables.
    fn leave_wayless(&mut self, applied: &mut Applied) -> Result<(), DatapathError> {
        for (netns_cookie, error) in self.datapath.keep_ways_back()? {
            self.datapath.apply(&MapOp::RemovePod { netns_cookie })?;
            let left = self.datapath.apply(&MapOp::DetachNetns { netns_cookie });
            applied.ops += 2;
            applied.unlinked.insert(netns_cookie, render_chain(&error));
            applied.failure.get_or_insert(error);
            if let Err(error) = left {
                applied.failure.get_or_insert(error);
            }
        }
        Ok(())
    }

    fn located(&self) -> BTreeMap<u64, PathBuf> {
        let found = |(path, sighting): (&PathBuf, &Sighting)| match sighting {
            Sighting::Found(namespace) => Some((namespace.cookie, path.clone())),
            Sighting::Lost { .. } => None,
        };
        self.namespaces.iter().filter_map(found).collect()
    }

    fn resolved(&self) -> BTreeMap<PodName, ResolvedPod> {
        let resolve = |(name, pod): (&PodName, &Pod)| {
            let Capture::Accelerated(policy) = &pod.capture else {
                return None;
            };
            let Some(Sighting::Found(namespace)) = self.namespaces.get(&pod.netns) else {
                return None;
            };
            let resolved = ResolvedPod {
                addrs: namespace.addrs.clone(),
                interfaces: namespace.interfaces.clone(),
                netns_cookie: namespace.cookie,
                routes: namespace.routes.clone(),
                sources: namespace.sources,
                policy: policy.clone(),
                proxy_gid: pod.proxy_gid,
                proxy_uid: pod.proxy_uid,
            };
            Some((name.clone(), resolved))
        };
        self.config.pods.iter().filter_map(resolve).collect()
    }

    fn condition_of(&self, pod: &Pod, unlinked: &BTreeMap<u64, String>) -> Condition {
        if pod.capture == Capture::LeftAlone {
            let notice = |notice: &isthmus_api::node_config::Notice| notice.effect;
            let reason = pod
                .notices
                .first()
                .map_or("it asks not to be captured", notice)
                .to_owned();
            return Condition::LeftAlone { reason };
        }
        match self.namespaces.get(&pod.netns) {
            Some(Sighting::Found(namespace)) => match unlinked.get(&namespace.cookie) {
                Some(reason) => Condition::Waiting {
                    reason: reason.clone(),
                },
                None => Condition::Accelerated(namespace.clone()),
            },
            Some(Sighting::Lost { reason }) => Condition::Waiting {
                reason: reason.clone(),
            },
            None => Condition::Waiting {
                reason: format!("{} was not looked at yet", pod.netns.display()),
            },
        }
    }
}

/// What became of a list of operations.
#[derive(Debug, Default)]
struct Applied {
    failure: Option<DatapathError>,
    ops: usize,
    /// Pods that are not captured because their namespaces took no link, or not what goes with it, by cookie,
    /// with the reason.
    unlinked: BTreeMap<u64, String>,
}

fn wish_of(policy: &TrafficPolicy) -> Wish {
    if policy.exclude_interfaces.is_empty() {
        Wish::Addresses
    } else {
        Wish::AddressesAndRoutes
    }
}

fn changes(old: &BTreeMap<PodName, Condition>, new: &BTreeMap<PodName, Condition>) -> Vec<Change> {
    let gone = old.keys().filter(|pod| !new.contains_key(*pod));
    let gone = gone.map(|pod| Change {
        condition: None,
        pod: pod.clone(),
    });
    let changed = new
        .iter()
        .filter(|(pod, condition)| old.get(*pod) != Some(condition));
    let changed = changed.map(|(pod, condition)| Change {
        condition: Some(condition.clone()),
        pod: pod.clone(),
    });
    gone.chain(changed).collect()
}

#[cfg(test)]
mod tests;
