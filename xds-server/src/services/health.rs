//! gRPC's own health check: serving while there is a configuration to serve and the server does not
//! stop, as `/readyz` says it.

use std::sync::Arc;

use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::outbound::{self, Outbound};
use crate::plane::Plane;

/// `grpc.health.v1.Health`.
#[derive(Debug)]
pub(super) struct HealthService {
    readiness: watch::Receiver<bool>,
    services: Arc<[String]>,
    shutdown: watch::Receiver<bool>,
}

impl HealthService {
    /// Answers for `services`, and for `""`, the server as a whole. They serve together or not at all.
    pub(super) fn new(
        plane: &Plane,
        services: Arc<[String]>,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        Self {
            readiness: plane.readiness(),
            services,
            shutdown,
        }
    }

    fn knows(&self, service: &str) -> bool {
        service.is_empty() || self.services.iter().any(|name| name == service)
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = Outbound<HealthCheckResponse>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !self.knows(&request.get_ref().service) {
            return Err(Status::not_found("no such service on this server"));
        }
        let status = status(*self.readiness.borrow(), *self.shutdown.borrow());
        Ok(Response::new(answer(status)))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let is_known = self.knows(&request.get_ref().service);
        let (mut readiness, mut shutdown) = (self.readiness.clone(), self.shutdown.clone());
        let body = outbound::spawn(self.shutdown.clone(), async move |responses| {
            let mut told = None;
            loop {
                let now = if is_known {
                    let is_ready = *readiness.borrow_and_update();
                    status(is_ready, *shutdown.borrow_and_update())
                } else {
                    ServingStatus::ServiceUnknown
                };
                if told != Some(now) {
                    if responses.send(Ok(answer(now))).await.is_err() {
                        return Ok(());
                    }
                    told = Some(now);
                }
                let changed = tokio::select! {
                    changed = readiness.changed() => changed,
                    changed = shutdown.changed() => changed,
                };
                if changed.is_err() {
                    return Err(Status::unavailable("the server is gone"));
                }
            }
        });
        Ok(Response::new(body))
    }
}

fn status(is_ready: bool, is_stopping: bool) -> ServingStatus {
    if is_ready && !is_stopping {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt;

    fn request(service: &str) -> Request<HealthCheckRequest> {
        let service = service.to_owned();
        Request::new(HealthCheckRequest { service })
    }

    #[tokio::test]
    async fn serving_means_ready_and_not_stopping() {
        let plane = Plane::new();
        let (stopping, shutdown) = watch::channel(false);
        let service = HealthService::new(&plane, ["a.B".to_owned()].into(), shutdown);
        let mut watched = service.watch(request("a.B")).await.unwrap().into_inner();
        let next = async |watched: &mut Outbound<HealthCheckResponse>| {
            watched.next().await.unwrap().map(|it| it.status())
        };
        let check = async |name: &str| {
            let checked = service.check(request(name)).await;
            checked.map(|it| it.into_inner().status())
        };

        assert_eq!(next(&mut watched).await.unwrap(), ServingStatus::NotServing);
        assert_eq!(check("").await.unwrap(), ServingStatus::NotServing);
        plane.publish(Vec::new()).expect("no other source");
        assert_eq!(next(&mut watched).await.unwrap(), ServingStatus::Serving);
        assert_eq!(check("").await.unwrap(), ServingStatus::Serving);
        assert_eq!(check("a.B").await.unwrap(), ServingStatus::Serving);
        stopping.send_replace(true);
        assert_eq!(next(&mut watched).await.unwrap(), ServingStatus::NotServing);
        assert_eq!(check("a.B").await.unwrap(), ServingStatus::NotServing);
        let ended = next(&mut watched).await.unwrap_err();
        assert_eq!(ended.code(), tonic::Code::Unavailable);
    }

    #[tokio::test]
    async fn an_unknown_service_is_said_to_be_unknown() {
        let plane = Plane::new();
        let (_stopping, shutdown) = watch::channel(false);
        let service = HealthService::new(&plane, ["a.B".to_owned()].into(), shutdown);
        let refused = service.check(request("a.C")).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::NotFound);
        let watched = service.watch(request("a.C")).await.unwrap();
        let first = watched.into_inner().next().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    }
}
