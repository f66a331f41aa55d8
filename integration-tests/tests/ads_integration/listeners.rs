//! Listeners that wait for their routes, and routes that change under them.

use anyhow::{Result, ensure};

use super::fixture::{Lab, over_sotw_and_delta};
use super::resources::{LDS, RDS, route};

const CREATED: &str = "listener_manager.listener_create_success";
const WARMING: &str = "listener_manager.total_listeners_warming";

/// `server.state` of a server that waits for something.
const INITIALIZING: u64 = 3;

#[test]
fn rds_after_lds_with_no_rds_changes() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let lab = Lab::live(protocol, Lab::basic)?;
        lab.stat_reaches(CREATED, 1)?;
        lab.expect_answer(0)?;

        let mut resources = lab.basic();
        resources[2] = lab.listener_as(0, "listener_0", "route_config_0", "rds_crash");
        lab.publish(&resources)?;
        lab.stat_reaches(CREATED, 2)?;
        lab.stat_is(WARMING, 0)?;
        lab.expect_answer(0)?;
        lab.server_says(LDS, "SYNCED")?;
        lab.expect_no_rejection()
    })
}

#[test]
fn rds_after_lds_with_rds_change() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let lab = Lab::live(protocol, Lab::basic)?;
        lab.expect_answer(0)?;

        lab.publish(&[
            lab.cluster("cluster_1"),
            lab.endpoints("cluster_1"),
            lab.listener_as(0, "listener_0", "route_config_0", "rds_crash"),
            route("route_config_0", "cluster_1", "r2"),
        ])?;
        lab.stat_reaches(CREATED, 2)?;
        lab.wait_answer(0, "r2")?;
        lab.wait("cluster_0 to be gone", |lab| {
            let names = lab.clusters("dynamic_active_clusters")?;
            ensure!(names == ["cluster_1"], "there are {names:?}");
            Ok(())
        })?;
        lab.expect_answer(0)?;
        lab.expect_no_rejection()
    })
}

#[test]
fn rds_after_lds_invalidated() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::live(protocol, Lab::basic)?;
        // A listener that waits for a route is replaced by another that waits for the same.
        let mut resources = lab.basic();
        resources[2] = lab.listener(0, "listener_0", "route_config_1");
        lab.publish(&resources)?;
        lab.stat_is(WARMING, 1)?;
        wait_asked(&lab, 2)?;
        lab.expect_answer(0)?;
        resources[2] = lab.listener_as(0, "listener_0", "route_config_1", "omg");
        lab.publish(&resources)?;
        lab.stat_is("listener_manager.listener_modified", 2)?;
        lab.stat_is(WARMING, 1)?;

        resources.push(route("route_config_1", "cluster_0", "r2"));
        lab.publish(&resources)?;
        lab.stat_is(WARMING, 0)?;
        lab.stat_reaches(CREATED, 2)?;
        lab.wait_answer(0, "r2")?;
        lab.wait_live()?;
        lab.expect_no_rejection()
    })
}

#[test]
fn listener_warming_on_named_response() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let lab = Lab::live(protocol, Lab::basic)?;
        lab.expect_answer(0)?;
        // A route that Envoy has needs no waiting.
        let mut resources = vec![
            lab.cluster("cluster_1"),
            lab.endpoints("cluster_1"),
            lab.listener_as(0, "listener_0", "route_config_0", "rds_test"),
            route("route_config_0", "cluster_1", "r2"),
        ];
        lab.publish(&resources)?;
        lab.stat_reaches(CREATED, 2)?;
        lab.stat_is(WARMING, 0)?;
        lab.wait_answer(0, "r2")?;

        // One that it does not have is waited for, and the old listener serves.
        resources[2] = lab.listener_as(0, "listener_0", "route_config_1", "rds_test");
        lab.publish(&resources)?;
        lab.stat_is(WARMING, 1)?;
        lab.wait_answer(0, "r2")?;

        resources.push(route("route_config_1", "cluster_1", "r3"));
        lab.publish(&resources)?;
        lab.stat_is(WARMING, 0)?;
        lab.stat_reaches(CREATED, 3)?;
        lab.wait_answer(0, "r3")?;
        lab.expect_no_rejection()
    })
}

#[test]
fn remove_warming_listener() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let lab = Lab::live(protocol, Lab::basic)?;
        let mut resources = lab.basic();
        resources.push(lab.listener(1, "warming_listener_1", "nonexistent_route"));
        lab.publish(&resources)?;
        lab.stat_is(WARMING, 1)?;
        wait_asked(&lab, 2)?;

        lab.publish(&lab.basic())?;
        lab.stat_is("listener_manager.listener_removed", 1)?;
        lab.stat_is(WARMING, 0)?;
        wait_asked(&lab, 1)?;
        lab.server_says(LDS, "SYNCED")?;
        lab.expect_answer(0)?;
        lab.expect_no_rejection()
    })
}

#[test]
fn listener_drain_before_server_start() -> Result<()> {
    over_sotw_and_delta(|protocol| {
        let mut lab = Lab::new(protocol)?;
        let basic = lab.basic();
        lab.publish(&basic[..3])?;
        lab.start()?;
        lab.stat_reaches("listener_manager.total_listeners_active", 1)?;
        lab.stat_is("server.state", INITIALIZING)?;
        let listeners = lab.dumped("ListenersConfigDump", "dynamic_listeners")?;
        ensure!(
            listeners.len() == 1 && listeners[0]["warming_state"].is_object(),
            "{listeners:?}"
        );

        lab.publish(&basic[..2])?;
        lab.stat_is("listener_manager.total_listeners_active", 0)?;
        // Nothing is left to wait for.
        lab.stat_is("server.state", 0)?;
        lab.expect_no_rejection()
    })
}

fn wait_asked(lab: &Lab, names: u64) -> Result<()> {
    lab.wait(&format!("{names} routes to be asked for"), |lab| {
        let status = lab.server_view(RDS)?;
        ensure!(status["names"] == names, "{status}");
        Ok(())
    })
}
