//! What a session asks of the configuration.

use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;

use crate::policy::{
    AddressPlace, Configuration, Connection, Decision, Options, Personality, Rewriting, Stage,
    Surroundings, Transaction,
};

/// The configuration of now. It may be another one at the next command.
pub trait Rules: Send + Sync + 'static {
    fn current(&self) -> Arc<dyn Policy>;
}

/// One version of the configuration, as sessions see it.
#[async_trait]
pub trait Policy: Send + Sync {
    /// The personality of a server address.
    fn personality(&self, server: IpAddr) -> Personality;
    /// Runs the rules of one stage.
    async fn check(
        &self,
        stage: Stage,
        connection: &mut Connection,
        transaction: &Transaction,
        around: &Surroundings,
    ) -> Decision;
    /// The crypt(3) hash of a user's password.
    fn password_hash(&self, user: &str) -> Option<&str>;
    /// Options outside rules.
    fn options(&self) -> &Options;
    /// The client is trusted to name the user on whose behalf it submits (`mua` in `addrparams`).
    fn is_mua(&self, client: IpAddr) -> bool;
    /// The client is asked for a certificate when TLS begins (`tls_try_verify_hosts`).
    fn asks_certificate(&self, client: IpAddr, name: Option<&str>) -> bool;
    /// What an address becomes in a message that is taken; `None`: it stays.
    fn rewrite(&self, address: &str, place: AddressPlace) -> Option<Rewriting>;
    /// Whether addresses in headers may be rewritten.
    fn rewrites_headers(&self) -> bool;
    /// A header block (fields only) with its addresses rewritten, and what was; `None`: nothing.
    fn rewrite_header(&self, header: &[u8]) -> Option<(Vec<u8>, Vec<Rewriting>)>;
    /// The client is one of ours: own limits, and the reserve (`smtp_reserve_hosts = +relay_hosts` in the paper).
    fn is_relay_host(&self, client: IpAddr) -> bool;
}

#[async_trait]
impl Policy for Configuration {
    fn personality(&self, server: IpAddr) -> Personality {
        Self::personality(self, server)
    }

    async fn check(
        &self,
        stage: Stage,
        connection: &mut Connection,
        transaction: &Transaction,
        around: &Surroundings,
    ) -> Decision {
        Self::check(self, stage, connection, transaction, around).await
    }

    fn password_hash(&self, user: &str) -> Option<&str> {
        Self::password_hash(self, user)
    }

    fn options(&self) -> &Options {
        Self::options(self)
    }

    fn is_mua(&self, client: IpAddr) -> bool {
        self.says_yes(client, "mua")
    }

    fn asks_certificate(&self, client: IpAddr, name: Option<&str>) -> bool {
        Self::asks_certificate(self, client.to_canonical(), name)
    }

    fn rewrite(&self, address: &str, place: AddressPlace) -> Option<Rewriting> {
        Self::rewrite(self, address, place)
    }

    fn rewrites_headers(&self) -> bool {
        Self::rewrites_headers(self)
    }

    fn rewrite_header(&self, header: &[u8]) -> Option<(Vec<u8>, Vec<Rewriting>)> {
        Self::rewrite_header(self, header)
    }

    fn is_relay_host(&self, client: IpAddr) -> bool {
        self.is_reserve_host(client.to_canonical())
    }
}
