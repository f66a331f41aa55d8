//! A crash at any step of loading, taking over and detaching is repaired by the next command, and no
//! request fails meanwhile.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isthmus_accel_abi::{ABI_VERSION, PodConfig};
use isthmus_integration_tests::wait;

use crate::{
    agent::Agent,
    idle::IdleConnections,
    mesh::{Mesh, PATIENCE},
    objects::Objects,
    steps::{self, End, Step, Until},
    traffic::Traffic,
    versions::{install, other_versions},
};

/// Connections that send requests all the time.
const WORKERS: usize = 2;
/// Leaves the processors to the agent.
const PAUSE: Duration = Duration::from_millis(1);
/// Requests that must be answered after each repair.
const REQUESTS: u64 = 50;

/// Every so many steps, one is tried; which, differs from run to run. With `ISTHMUS_EVERY_STEP` in the
/// environment, all of them are: that takes ten minutes.
const STRIDE: usize = 5;

fn chosen(steps: &[Step]) -> impl Iterator<Item = &Step> {
    let stride = match std::env::var_os("ISTHMUS_EVERY_STEP") {
        Some(_) => 1,
        None => STRIDE,
    };
    let first = std::process::id() as usize % stride;
    steps.iter().skip(first).step_by(stride)
}

/// Everything that one of these tests needs.
struct Scene {
    agent: Agent,
    mesh: Mesh,
    objects: Objects,
    traffic: Traffic,
}

impl Scene {
    fn start() -> Result<Self> {
        let mesh = Mesh::start()?;
        Ok(Self {
            agent: Agent::prepare(&mesh)?,
            objects: Objects::default(),
            traffic: Traffic::start(&mesh, WORKERS, PAUSE),
            mesh,
        })
    }

    /// Starts the agent, sees that all is right, and ends it again.
    fn repair_by_start(&mut self) -> Result<()> {
        self.agent.start()?;
        let before = self.mesh.redirects_by_iptables()?;
        self.traffic.wait_for(REQUESTS)?;
        let after = self.mesh.redirects_by_iptables()?;
        ensure!(
            after == before,
            "{} connections met the rules",
            after - before
        );
        self.objects.note(self.agent.pin_root())?;
        self.agent.terminate().map(drop)
    }

    fn repair_by_detach(&mut self) -> Result<()> {
        self.agent.detach()?;
        let pins = self.agent.pin_root();
        ensure!(!pins.exists(), "{} is left", pins.display());
        let run = self.agent.dir().join("run");
        ensure!(!run.exists(), "{} is left", run.display());
        self.traffic.wait_for(REQUESTS)
    }

    fn finish(self, steps: usize) -> Result<()> {
        let rules = self.mesh.rules()?;
        let (requests, rate) = self.traffic.finish()?;
        println!("{steps} steps, {requests} requests, {rate}/s");
        wait::until("the kernel to let go", PATIENCE, || {
            let left = self.objects.left()?;
            ensure!(left.is_empty(), "of {}: {left:?}", self.objects.len());
            Ok(())
        })?;
        ensure!(self.mesh.rules()? == rules, "the rules are others");
        Ok(())
    }
}

fn at(step: &Step) -> String {
    format!("killed before {}", step.line)
}

#[test]
fn a_crash_at_any_step_of_loading_is_repaired_by_the_next_start() -> Result<()> {
    let mut scene = Scene::start()?;
    let args = scene.agent.run_args();
    let steps = steps::record(scene.agent.dir(), &args, &Until::Ready)?;
    ensure!(steps.len() > 30, "{steps:?}");
    scene.repair_by_detach()?;
    let mut tried = 0;
    for step in chosen(&steps) {
        tried += 1;
        let end = steps::run_up_to(scene.agent.dir(), &args, step, &Until::Ready)
            .with_context(|| at(step))?;
        ensure!(end == End::Killed, "{}", at(step));
        scene.objects.note(scene.agent.pin_root())?;
        scene.repair_by_start().with_context(|| at(step))?;
        scene.repair_by_detach().with_context(|| at(step))?;
    }
    scene.finish(tried)
}

#[test]
fn a_crash_at_any_step_of_detaching_is_repaired_by_the_next_start_or_detach() -> Result<()> {
    let mut scene = Scene::start()?;
    scene.repair_by_start()?;
    let args = scene.agent.detach_args();
    let steps = steps::record(scene.agent.dir(), &args, &Until::Done)?;
    ensure!(steps.len() > 30, "{steps:?}");
    // As many sockets leave the sockmap as there are: the last steps may not be reached again.
    let (mut reached, mut tried) = (0, 0);
    for (number, step) in chosen(&steps).enumerate() {
        tried += 1;
        scene.repair_by_start().with_context(|| at(step))?;
        let end = steps::run_up_to(scene.agent.dir(), &args, step, &Until::Done)
            .with_context(|| at(step))?;
        reached += usize::from(end == End::Killed);
        if number % 2 == 0 {
            scene.repair_by_detach().with_context(|| at(step))?;
        }
    }
    ensure!(reached * 10 >= tried * 8, "{reached} of {tried}");
    scene.repair_by_start()?;
    scene.repair_by_detach()?;
    scene.finish(reached)
}

#[test]
fn a_crash_at_any_step_of_taking_over_is_repaired_by_the_next_start() -> Result<()> {
    let mut scene = Scene::start()?;
    let args = scene.agent.run_args();
    let [older, _] = other_versions();
    let theirs = scene.agent.version_dir(older.abi_version);
    let own = scene.agent.version_dir(ABI_VERSION);
    let pods = scene.mesh.pods()?;
    let bring_back = |scene: &Scene| -> Result<IdleConnections> {
        install(&theirs, &older, PodConfig::istio_default(), &pods);
        let mut idle = IdleConnections::default();
        idle.open(&scene.mesh, 2)?;
        Ok(idle)
    };

    // Up to its own last link it only adds: that is what a first start does, too.
    let mut idle = bring_back(&scene)?;
    let all = steps::record(scene.agent.dir(), &args, &Until::Ready)?;
    let added = all.iter().rposition(|step| {
        step.line.starts_with("bpf(BPF_OBJ_PIN") && step.line.contains("/links/")
    });
    let steps = &all[added.context("it pins links")?..];
    ensure!(steps.len() > 5, "{steps:?}");
    let mut tried = 0;
    for step in chosen(steps) {
        tried += 1;
        idle.finish().with_context(|| at(step))?;
        scene.repair_by_start()?;
        scene.repair_by_detach()?;

        idle = bring_back(&scene)?;
        let end = steps::run_up_to(scene.agent.dir(), &args, step, &Until::Ready)
            .with_context(|| at(step))?;
        ensure!(end == End::Killed, "{}", at(step));
        ensure!(own.exists(), "{}", at(step));
        scene.objects.note(scene.agent.pin_root())?;
        scene.repair_by_start().with_context(|| at(step))?;
    }
    idle.finish()?;
    scene.agent.start()?;
    scene.agent.wait_alone()?;
    ensure!(!theirs.exists(), "{} is left", theirs.display());
    scene.agent.terminate()?;
    scene.repair_by_detach()?;
    scene.finish(tried)
}
