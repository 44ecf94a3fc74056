//! Managed mail domains, for operators.

use ppsw_proto::control::{self as pb, command::Change};
use tonic::Status;

use crate::{
    https::{self, Password},
    plane::Shared,
    state::versions::NOTHING_YET,
};

/// All domains, or one.
pub(super) fn list(
    shared: &Shared,
    request: &pb::ListDomainsRequest,
) -> Result<pb::ListDomainsReply, Status> {
    let domains = shared.hooks.domains(&request.domain).map_err(Status::unavailable)?;
    if domains.is_empty() && !request.domain.is_empty() {
        return Err(Status::not_found(format!(
            "there is no managed domain {}: `ppswctl domains list` shows all",
            request.domain
        )));
    }
    Ok(pb::ListDomainsReply { domains })
}

/// Begins to fetch a domain, or from another place.
pub(super) async fn set(
    shared: &Shared,
    mut request: pb::SetHttpsRequest,
    by: String,
) -> Result<pb::SetHttpsReply, Status> {
    let password = Password::new(std::mem::take(&mut request.password));
    let url = https::check(&request).map_err(Status::invalid_argument)?;
    password.check().map_err(Status::invalid_argument)?;
    let state = shared.state();
    if !state.versions.any() {
        // What is fetched is laid over a version.
        return Err(Status::failed_precondition(NOTHING_YET));
    }
    let vault = shared.vault().map_err(Status::failed_precondition)?;
    let sealed = vault.seal(&request.domain, &password).map_err(Status::internal)?;
    let pb::SetHttpsRequest { domain, user, ca_pem, .. } = request;
    let replaced = state.https_domains.contains_key(&domain);
    tracing::info!(domain, %url, user, by, "the domain is fetched from now on");
    let set = pb::SetHttpsDomain {
        domain,
        url: url.to_string(),
        user,
        sealed_password: sealed.into(),
        ca_pem,
        by,
        at_ms: shared.now().0,
    };
    shared.command_heard(Change::SetHttpsDomain(set)).await?;
    Ok(pb::SetHttpsReply { replaced })
}

/// Fetches a domain no more; what is live stays.
pub(super) async fn unset(shared: &Shared, domain: String, by: &str) -> Result<(), Status> {
    tracing::info!(domain, by, "the domain is not fetched any more");
    shared.command_heard(Change::UnsetHttpsDomain(pb::UnsetHttpsDomain { domain })).await?;
    Ok(())
}
