//! `ppswctl token`.

use std::time::Duration;

use ppsw_proto::control::{
    DropTokenRequest, ListTokensRequest, MakeTokenRequest, admin_client::AdminClient,
};
use serde_json::json;
use tonic::transport::Channel;

use crate::{
    session::{Failure, Session},
    show,
};

pub(crate) async fn create(
    session: &mut Session,
    json: bool,
    ttl: Duration,
) -> Result<(), Failure> {
    if ttl.is_zero() {
        return Err(Failure::Usage("expected --ttl above zero".to_owned()));
    }
    let lifetime_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let reply = session
        .call(async |mut client: AdminClient<Channel>| {
            client.make_token(MakeTokenRequest { lifetime_ms }).await
        })
        .await?;
    if json {
        show::json(&json!({
            "id": reply.id,
            "token": reply.token,
            "expires": show::time(reply.expires_ms),
        }));
    } else {
        show::line(&reply.token);
    }
    Ok(())
}

pub(crate) async fn list(session: &mut Session, json: bool) -> Result<(), Failure> {
    let tokens = session
        .call(async |mut client: AdminClient<Channel>| {
            client.list_tokens(ListTokensRequest {}).await
        })
        .await?
        .tokens;
    if json {
        let rows = tokens.iter().map(|token| {
            json!({
                "id": token.id,
                "created": show::time(token.created_ms),
                "expires": show::time(token.expires_ms),
                "by": token.by,
                "expired": token.expired,
            })
        });
        show::json(&rows.collect());
        return Ok(());
    }
    let mut table = show::table(&["ID", "BY", "CREATED", "EXPIRES"]);
    for token in tokens {
        let expires = if token.expired {
            "expired".to_owned()
        } else {
            format!("in {}", show::until(token.expires_ms))
        };
        table.add_row([
            token.id,
            token.by,
            format!("{} ago", show::ago(token.created_ms)),
            expires,
        ]);
    }
    show::print(&table);
    Ok(())
}

pub(crate) async fn revoke(session: &mut Session, json: bool, id: String) -> Result<(), Failure> {
    session
        .call(|mut client: AdminClient<Channel>| {
            let id = id.clone();
            async move { client.drop_token(DropTokenRequest { id }).await }
        })
        .await?;
    if json {
        show::json(&json!({ "id": id, "revoked": true }));
    } else {
        show::line(&format!("token {id} is revoked"));
    }
    Ok(())
}
