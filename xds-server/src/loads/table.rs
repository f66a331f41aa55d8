//! Load reports, summed up by cluster and locality, within bounds whatever clients send.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::time::{Duration, SystemTime};

use isthmus_proto::pb::envoy::config::core::v3::Address;
use isthmus_proto::pb::envoy::config::core::v3::address::Address as AddressKind;
use isthmus_proto::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use isthmus_proto::pb::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};

/// Sums that are kept: clusters, their localities, categories of drops, endpoints and metrics each
/// count as one. The largest sidecar configuration on record has 3,186 clusters; in ten localities
/// each they take half of this, and some 20 MB.
pub const LOADS_KEPT: usize = 65_536;

/// Bytes of a name in a report. The longest that a real control plane makes has about 300.
const NAME_BYTES: usize = 512;

/// Age from which a cluster that nobody reports any more makes room for one that somebody does.
const IDLE: Duration = Duration::from_hours(1);

/// How often room is looked for: it costs a look at every cluster.
const ROOM_INTERVAL: Duration = Duration::from_mins(1);

/// Localities that metrics name; the rest is summed up. Three series each.
pub(super) const NAMED_LOCALITIES: usize = 1000;

/// A cluster, as reports name it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ClusterKey {
    /// Its name.
    pub cluster: String,
    /// The name that its endpoints go by, if that is another.
    pub service: String,
}

/// Where endpoints are.
#[derive(Clone, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
#[allow(missing_docs, reason = "the terms of Envoy's Locality")]
pub struct Locality {
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
}

/// Requests, over all reports.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Begun.
    pub issued: u64,
    /// Ended well.
    pub successful: u64,
    /// Ended in an error.
    pub errors: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.issued = self.issued.saturating_add(more.issued);
        self.successful = self.successful.saturating_add(more.successful);
        self.errors = self.errors.saturating_add(more.errors);
    }
}

/// A measurement that endpoints add to their answers (ORCA).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadMetric {
    /// Requests that carried it.
    pub requests: u64,
    /// Sum of its values.
    pub total: f64,
}

/// The load of one cluster.
#[derive(Clone, Debug)]
pub struct ClusterLoad {
    /// When it was last reported.
    pub last_report: SystemTime,
    /// Requests that were dropped before they had an endpoint.
    pub dropped: u64,
    /// Of these, by category.
    pub dropped_by_category: BTreeMap<String, u64>,
    /// By where the endpoints are.
    pub localities: BTreeMap<Locality, LocalityLoad>,
}

/// The load of the endpoints of one cluster in one place.
#[derive(Clone, Debug, Default)]
pub struct LocalityLoad {
    /// Requests.
    pub counts: Counts,
    /// By name.
    pub metrics: BTreeMap<String, LoadMetric>,
    /// By address, if clients were asked for it.
    pub endpoints: BTreeMap<String, Counts>,
    pub(super) is_named: bool,
}

/// All load that was reported.
#[derive(Debug, Default)]
pub struct LoadTable {
    clusters: BTreeMap<ClusterKey, ClusterLoad>,
    kept: usize,
    reports: u64,
    not_kept: u64,
    named: usize,
    unnamed: Counts,
    room_sought: Option<SystemTime>,
}

impl LoadTable {
    /// Adds one report of one client, received at `now`. What there is no room for is counted.
    pub fn record(&mut self, report: Vec<ClusterStats>, now: SystemTime) {
        self.reports += 1;
        for stats in report {
            let key = ClusterKey {
                cluster: stats.cluster_name,
                service: stats.cluster_service_name,
            };
            let has_drops = stats.total_dropped_requests > 0;
            let is_idle = stats.upstream_locality_stats.is_empty() && !has_drops;
            // Envoy lists clusters that nothing happened on. One without a name breaks Envoy's rules.
            if is_idle || key.cluster.is_empty() {
                continue;
            }
            let is_new = !self.clusters.contains_key(&key);
            if is_new && !self.take_room(&[&key.cluster, &key.service], now) {
                let counts = stats.upstream_locality_stats.iter().map(counts_of);
                counts.for_each(|counts| self.unnamed += counts);
                continue;
            }
            // Out of the table while the rest of it is counted.
            let mut load = self.clusters.remove(&key).unwrap_or(ClusterLoad {
                last_report: now,
                dropped: 0,
                dropped_by_category: BTreeMap::new(),
                localities: BTreeMap::new(),
            });
            load.last_report = now;
            load.dropped = load.dropped.saturating_add(stats.total_dropped_requests);
            for drops in stats.dropped_requests {
                let sums = &mut load.dropped_by_category;
                if let Some(sum) = self.sum(sums, drops.category, now) {
                    *sum = sum.saturating_add(drops.dropped_count);
                }
            }
            for stats in stats.upstream_locality_stats {
                self.record_locality(&mut load, stats, now);
            }
            self.clusters.insert(key, load);
        }
    }

    /// Every cluster, by name.
    pub fn clusters(&self) -> &BTreeMap<ClusterKey, ClusterLoad> {
        &self.clusters
    }

    /// Reports received.
    pub fn reports(&self) -> u64 {
        self.reports
    }

    /// Sums that were reported and not kept, because there was no room or the name is too long.
    pub fn not_kept(&self) -> u64 {
        self.not_kept
    }

    /// Sums that are kept, of [`LOADS_KEPT`].
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// The load of all localities that metrics do not name, ever.
    pub(super) fn unnamed(&self) -> Counts {
        self.unnamed
    }

    fn record_locality(
        &mut self,
        cluster: &mut ClusterLoad,
        stats: UpstreamLocalityStats,
        now: SystemTime,
    ) {
        let locality = stats.locality.clone().unwrap_or_default();
        let locality = Locality {
            region: locality.region,
            zone: locality.zone,
            sub_zone: locality.sub_zone,
        };
        let counts = counts_of(&stats);
        if !cluster.localities.contains_key(&locality) {
            let Locality {
                region,
                zone,
                sub_zone,
            } = &locality;
            if !self.take_room(&[region, zone, sub_zone], now) {
                self.unnamed += counts;
                return;
            }
            let is_named = self.named < NAMED_LOCALITIES;
            self.named += usize::from(is_named);
            let load = LocalityLoad {
                is_named,
                ..LocalityLoad::default()
            };
            cluster.localities.insert(locality.clone(), load);
        }
        let Some(load) = cluster.localities.get_mut(&locality) else {
            return;
        };
        load.counts += counts;
        if !load.is_named {
            self.unnamed += counts;
        }
        for metric in stats.load_metric_stats {
            if let Some(sum) = self.sum(&mut load.metrics, metric.metric_name, now) {
                let more = metric.num_requests_finished_with_metric;
                sum.requests = sum.requests.saturating_add(more);
                sum.total += metric.total_metric_value;
            }
        }
        for endpoint in stats.upstream_endpoint_stats {
            let address = render_address(endpoint.address.as_ref());
            if let Some(sum) = self.sum(&mut load.endpoints, address, now) {
                *sum += Counts {
                    issued: endpoint.total_issued_requests,
                    successful: endpoint.total_successful_requests,
                    errors: endpoint.total_error_requests,
                };
            }
        }
    }

    fn sum<'a, T: Default>(
        &mut self,
        sums: &'a mut BTreeMap<String, T>,
        name: String,
        now: SystemTime,
    ) -> Option<&'a mut T> {
        if !sums.contains_key(&name) && !self.take_room(&[&name], now) {
            return None;
        }
        Some(sums.entry(name).or_default())
    }

    // Counts one more sum, if there may be one.
    fn take_room(&mut self, names: &[&String], now: SystemTime) -> bool {
        let is_long = names.iter().any(|name| name.len() > NAME_BYTES);
        if !is_long && self.kept == LOADS_KEPT {
            self.make_room(now);
        }
        if is_long || self.kept == LOADS_KEPT {
            self.not_kept += 1;
            return false;
        }
        self.kept += 1;
        true
    }

    fn make_room(&mut self, now: SystemTime) {
        let since = |then: SystemTime| now.duration_since(then).unwrap_or_default();
        if self
            .room_sought
            .is_some_and(|then| since(then) < ROOM_INTERVAL)
        {
            return;
        }
        self.room_sought = Some(now);
        let (mut freed, mut unnamed) = (0, 0);
        self.clusters.retain(|_, cluster| {
            let is_idle = since(cluster.last_report) > IDLE;
            if is_idle {
                freed += cluster.sums();
                let named = cluster.localities.values().filter(|it| it.is_named);
                unnamed += named.count();
            }
            !is_idle
        });
        self.kept -= freed;
        self.named -= unnamed;
    }
}

impl ClusterLoad {
    fn sums(&self) -> usize {
        let localities = self.localities.values();
        let below = localities.map(|it| 1 + it.metrics.len() + it.endpoints.len());
        1 + self.dropped_by_category.len() + below.sum::<usize>()
    }
}

fn counts_of(stats: &UpstreamLocalityStats) -> Counts {
    Counts {
        issued: stats.total_issued_requests,
        successful: stats.total_successful_requests,
        errors: stats.total_error_requests,
    }
}

fn render_address(address: Option<&Address>) -> String {
    match address.and_then(|it| it.address.as_ref()) {
        Some(AddressKind::SocketAddress(socket)) => match &socket.port_specifier {
            Some(PortSpecifier::PortValue(port)) => format!("{}:{port}", socket.address),
            Some(PortSpecifier::NamedPort(port)) => format!("{}:{port}", socket.address),
            None => socket.address.clone(),
        },
        Some(AddressKind::Pipe(pipe)) => format!("unix:{}", pipe.path),
        Some(AddressKind::EnvoyInternalAddress(_)) => "envoy-internal".to_owned(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use isthmus_proto::pb::envoy::config::core::v3::{Locality as PbLocality, SocketAddress};
    use isthmus_proto::pb::envoy::config::endpoint::v3::cluster_stats::DroppedRequests;
    use isthmus_proto::pb::envoy::config::endpoint::v3::{
        EndpointLoadMetricStats, UpstreamEndpointStats,
    };

    use super::*;

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn stats(cluster: &str, zone: &str, successful: u64) -> ClusterStats {
        let locality = PbLocality {
            zone: zone.to_owned(),
            ..PbLocality::default()
        };
        ClusterStats {
            cluster_name: cluster.to_owned(),
            upstream_locality_stats: vec![UpstreamLocalityStats {
                locality: Some(locality),
                total_successful_requests: successful,
                total_issued_requests: successful + 1,
                total_error_requests: 1,
                ..UpstreamLocalityStats::default()
            }],
            ..ClusterStats::default()
        }
    }

    fn key(cluster: &str) -> ClusterKey {
        ClusterKey {
            cluster: cluster.to_owned(),
            service: String::new(),
        }
    }

    #[test]
    fn r59_reports_of_all_clients_are_summed_by_cluster_and_locality() {
        let mut table = LoadTable::default();
        let mut first = stats("a", "z1", 3);
        first.total_dropped_requests = 5;
        first.dropped_requests = vec![DroppedRequests {
            category: "throttle".to_owned(),
            dropped_count: 5,
        }];
        let locality = &mut first.upstream_locality_stats[0];
        locality.load_metric_stats = vec![EndpointLoadMetricStats {
            metric_name: "queue".to_owned(),
            num_requests_finished_with_metric: 2,
            total_metric_value: 0.5,
        }];
        let address = SocketAddress {
            address: "198.18.0.1".to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(80)),
            ..SocketAddress::default()
        };
        locality.upstream_endpoint_stats = vec![UpstreamEndpointStats {
            address: Some(Address {
                address: Some(AddressKind::SocketAddress(address)),
            }),
            total_issued_requests: 4,
            ..UpstreamEndpointStats::default()
        }];
        table.record(vec![first, stats("b", "z1", 1)], START);
        table.record(vec![stats("a", "z1", 4), stats("a", "z2", 9)], START);

        let a = &table.clusters()[&key("a")];
        assert_eq!((a.dropped, a.dropped_by_category["throttle"]), (5, 5));
        let successful: Vec<u64> = a
            .localities
            .values()
            .map(|it| it.counts.successful)
            .collect();
        assert_eq!(successful, [7, 9]);
        let z1 = a.localities.values().next().unwrap();
        assert_eq!((z1.counts.issued, z1.counts.errors), (9, 2));
        assert_eq!(z1.metrics["queue"].requests, 2);
        assert_eq!(z1.endpoints["198.18.0.1:80"].issued, 4);
        assert_eq!(table.reports(), 2);
        // Two clusters, three localities, one each of the rest.
        assert_eq!((table.kept(), table.not_kept()), (8, 0));
        // Nothing happened there.
        table.record(
            vec![ClusterStats {
                cluster_name: "idle".to_owned(),
                ..ClusterStats::default()
            }],
            START,
        );
        assert!(!table.clusters().contains_key(&key("idle")));
    }

    #[test]
    fn r59_a_client_that_invents_clusters_fills_the_table_and_no_more() {
        let mut table = LoadTable::default();
        let junk = |index: usize| stats(&format!("junk-{index}"), "z", 1);
        let all = LOADS_KEPT / 2;
        table.record((0..all).map(junk).collect(), START);
        table.record(vec![stats("real", "z", 1), stats("junk-0", "z2", 1)], START);
        assert_eq!((table.kept(), table.not_kept()), (LOADS_KEPT, 2));
        // What is there goes on.
        table.record(vec![stats("junk-0", "z", 1)], START);
        let load = &table.clusters()[&key("junk-0")];
        assert_eq!(
            load.localities.values().next().unwrap().counts.successful,
            2
        );

        let later = START + IDLE + ROOM_INTERVAL;
        table.record(vec![stats("junk-0", "z", 1), stats("real", "z", 1)], later);
        let left: Vec<&str> = table.clusters().keys().map(|it| &*it.cluster).collect();
        assert_eq!(left, ["junk-0", "real"], "what nobody reports makes room");
        assert_eq!((table.kept(), table.named), (4, 2));
    }

    #[test]
    fn r59_names_that_are_too_long_are_not_kept() {
        let mut table = LoadTable::default();
        let long = "x".repeat(NAME_BYTES + 1);
        table.record(vec![stats(&long, "z", 1), stats("a", &long, 1)], START);
        assert_eq!(table.not_kept(), 2);
        assert!(table.clusters()[&key("a")].localities.is_empty());
    }

    #[test]
    fn what_metrics_do_not_name_is_summed_up_and_never_falls() {
        let mut table = LoadTable::default();
        let many = NAMED_LOCALITIES + 3;
        let report = || {
            (0..many)
                .map(|index| stats(&format!("c{index:05}"), "z", 2))
                .collect()
        };
        table.record(report(), START);
        table.record(report(), START);
        assert_eq!(table.unnamed().successful, 3 * 2 * 2);
        assert_eq!(table.named, NAMED_LOCALITIES);
    }
}
