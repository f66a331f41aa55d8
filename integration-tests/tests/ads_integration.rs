//! Cases of Envoy's own `ads_integration_test`, re-enacted: there a real Envoy meets a scripted server, here it meets
//! `isthmus-xds`. Each test bears the name of its case, and runs over state of the world and over incremental ADS where
//! both have it.
//!
//! What the scripted server withholds is withheld by configuration here: a secret, a route or endpoints that no document
//! has yet keep a cluster or a listener warming.

#[path = "ads_integration/all_types.rs"]
mod all_types;
#[path = "ads_integration/bootstrap.rs"]
mod bootstrap;
#[path = "ads_integration/clusters.rs"]
mod clusters;
#[path = "ads_integration/delivery.rs"]
mod delivery;
#[path = "ads_integration/fixture.rs"]
mod fixture;
#[path = "ads_integration/listeners.rs"]
mod listeners;
#[path = "ads_integration/load_reports.rs"]
mod load_reports;
#[path = "ads_integration/resources.rs"]
mod resources;
#[path = "ads_integration/xds_tp.rs"]
mod xds_tp;
