//! `token create|list|revoke`.

use std::time::Duration;

use comfy_table::{Table, presets};
use ppsw_proto::control::{DropTokenRequest, ListTokensRequest, MakeTokenRequest};
use serde_json::{Value, json};

use crate::{Failure, address::Admin, age::rfc3339};

pub(crate) async fn create(
    admin: &mut Admin,
    expires: Duration,
    as_json: bool,
) -> Result<(), Failure> {
    let lifetime_ms = u64::try_from(expires.as_millis()).unwrap_or(u64::MAX);
    let made = admin.make_token(MakeTokenRequest { lifetime_ms }).await?.into_inner();
    if as_json {
        let expires = rfc3339(made.expires_ms);
        say!("{}", json!({ "id": made.id, "token": made.token, "expires": expires }));
    } else {
        say!("{}", made.token);
    }
    Ok(())
}

pub(crate) async fn list(admin: &mut Admin, as_json: bool) -> Result<(), Failure> {
    let tokens = admin.list_tokens(ListTokensRequest {}).await?.into_inner().tokens;
    if as_json {
        let all = tokens.iter().map(|t| {
            json!({
                "id": t.id,
                "created": rfc3339(t.created_ms),
                "expires": rfc3339(t.expires_ms),
                "by": t.by,
                "expired": t.expired,
            })
        });
        say!("{}", Value::from_iter(all));
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["id", "created", "expires", "by"]);
    for token in tokens {
        let text = |value: Value| value.as_str().unwrap_or("-").to_owned();
        let expires = text(rfc3339(token.expires_ms));
        let expires = if token.expired { format!("{expires} (over)") } else { expires };
        table.add_row([token.id, text(rfc3339(token.created_ms)), expires, token.by]);
    }
    say!("{table}");
    Ok(())
}

pub(crate) async fn revoke(admin: &mut Admin, id: &str, as_json: bool) -> Result<(), Failure> {
    admin.drop_token(DropTokenRequest { id: id.to_owned() }).await?;
    if as_json {
        say!("{}", json!({ "id": id, "revoked": true }));
    } else {
        say!("token {id}: revoked");
    }
    Ok(())
}
