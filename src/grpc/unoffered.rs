//! Services of the contract that are not offered yet: every call is UNIMPLEMENTED and names the feature.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

use super::status;
use crate::pb;

macro_rules! unoffered {
    ($name:ident, $service:path, $feature:literal) => {
        #[doc = concat!("Answers every call with UNIMPLEMENTED and ", $feature, ".")]
        #[derive(Clone, Copy, Debug, Default)]
        pub struct $name;

        impl NamedService for $name {
            const NAME: &'static str = $service;
        }

        impl<B> Service<http::Request<B>> for $name {
            type Response = http::Response<Body>;
            type Error = Infallible;
            type Future = Ready<Result<Self::Response, Infallible>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, _: http::Request<B>) -> Self::Future {
                ready(Ok(status::unimplemented($feature).into_http()))
            }
        }
    };
}

unoffered!(ReplicationServer, pb::replication_service_server::SERVICE_NAME, "REPLICATION_GROUPS");
unoffered!(GatewayServer, pb::provider_gateway_service_server::SERVICE_NAME, "PROVIDER_GATEWAY");

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_feature_is_named() {
        let response = ReplicationServer.call(http::Request::new(())).await.expect("infallible");
        let status = tonic::Status::from_header_map(response.headers()).expect("an answer without a body");
        assert_eq!(status.code(), tonic::Code::Unimplemented);
        assert!(status.message().starts_with("REPLICATION_GROUPS"));
        assert_eq!(ReplicationServer::NAME, "synclave.v1.ReplicationService");
    }
}
