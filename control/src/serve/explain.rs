//! What a node would do, and why: routes of addresses, and made-up SMTP sessions.

use futures::{StreamExt, stream, stream::BoxStream};
use ppsw_proto::control::{self as pb, session_input::Input};
use tonic::{Status, Streaming};

use crate::{Rehearsal, pki::Role, plane::Shared};

/// Where mail for an address would go.
pub(super) async fn route(
    shared: &Shared,
    request: pb::RouteRequest,
) -> Result<pb::RouteReply, Status> {
    shared.hooks.route(request).await.map_err(Status::invalid_argument)
}

/// Opens a session; the steps follow the operator's lines.
pub(super) async fn session(
    shared: &Shared,
    role: Option<Role>,
    mut inputs: Streaming<pb::SessionInput>,
) -> Result<BoxStream<'static, Result<pb::SessionStep, Status>>, Status> {
    let first = inputs.message().await?.and_then(|first| first.input);
    let Some(Input::Open(open)) = first else {
        return Err(Status::invalid_argument("the first message opens the session"));
    };
    if open.callouts && role != Some(Role::Admin) {
        return Err(Status::permission_denied(
            "callouts ask other hosts: they are only for role admin",
        ));
    }
    let rehearsal = shared.hooks.rehearse(open).map_err(Status::invalid_argument)?;
    let dialogue = Dialogue { rehearsal, inputs, begun: false };
    let steps = stream::unfold(Some(dialogue), |dialogue| async move {
        let mut dialogue = dialogue?;
        match dialogue.next().await {
            Ok(None) => None,
            Ok(Some(step)) => {
                let goes_on = !step.closed;
                Some((Ok(step), goes_on.then_some(dialogue)))
            }
            Err(status) => Some((Err(status), None)),
        }
    });
    Ok(steps.boxed())
}

struct Dialogue {
    rehearsal: Box<dyn Rehearsal>,
    inputs: Streaming<pb::SessionInput>,
    begun: bool,
}

impl Dialogue {
    async fn next(&mut self) -> Result<Option<pb::SessionStep>, Status> {
        if !std::mem::replace(&mut self.begun, true) {
            return Ok(Some(self.rehearsal.banner().await));
        }
        match self.inputs.message().await?.and_then(|input| input.input) {
            None => Ok(None),
            Some(Input::Line(line)) => {
                self.rehearsal.line(line).await.map(Some).map_err(Status::invalid_argument)
            }
            Some(Input::Open(_)) => Err(Status::invalid_argument("the session is open already")),
        }
    }
}
