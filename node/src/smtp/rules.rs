//! What a session asks of the configuration.

use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;

use crate::policy::{
    Configuration, Connection, Decision, Options, Personality, Stage, Surroundings, Transaction,
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

    fn is_relay_host(&self, client: IpAddr) -> bool {
        self.is_reserve_host(client.to_canonical())
    }
}
