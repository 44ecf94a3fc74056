//! `ppswctl node`.

use crate::{
    session::{Failure, Session},
    show, status,
};

pub(crate) async fn list(session: &mut Session, json: bool) -> Result<(), Failure> {
    let nodes = session.status().await?.nodes;
    if json {
        show::json(&nodes.iter().map(status::node_json).collect());
        return Ok(());
    }
    let mut table = show::table(&["NODE", "NAME", "STATE", "CONTROL", "HTTP", "VERSION", "JOINED"]);
    for node in nodes {
        let member = node.member.unwrap_or_default();
        table.add_row([
            member.id.to_string(),
            member.name,
            node.state,
            member.control,
            member.http,
            node.report.map(|report| report.version).unwrap_or_default(),
            format!("{} ago", show::ago(member.joined_ms)),
        ]);
    }
    show::print(&table);
    Ok(())
}
