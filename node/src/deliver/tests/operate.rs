//! What operators do with messages that wait.

use std::sync::Arc;

use mail_parser::MessageParser;
use ppsw_control::{Verb, Wanted};
use ppsw_spool::queue::{MessageState, RecipientState, Verdict};
use tokio::sync::Notify;

use super::{
    dialogue::destination,
    fake::{Setting, Table, deliver_to, target},
    server::{Script, Server},
};
use crate::route::{Fate, Protocol};

fn wanted(verb: Verb) -> Wanted {
    Wanted { verb, by: "anna".to_owned(), reason: "why\nnot".to_owned() }
}

/// Addresses that wait.
fn waiting(addresses: &[&str]) -> Table {
    let later = |address: &&str| {
        let fate = Fate::Defer("not now".to_owned());
        ((*address).to_owned(), vec![target(address, fate)])
    };
    Table { routes: addresses.iter().map(later).collect(), ..Table::default() }
}

#[tokio::test]
async fn recipients_are_given_up_and_the_sender_is_told_if_wanted() {
    let setting = Setting::new(waiting(&["a@y", "b@y", "s@x"]));
    let id = setting.put(1, "s@x", &["a@y", "b@y"]);
    setting.until("tried", || setting.outcomes().len() == 1).await;
    let operate = async |verb, recipients: &'static [u32]| {
        setting.deliverer.operate(&*setting.queue, id, recipients, &wanted(verb)).await
    };
    assert_eq!(operate(Verb::Bounce, &[0]).await, Ok(()));
    let outcome = setting.outcomes().remove(1);
    assert_eq!((outcome.finished.as_slice(), outcome.creates.len()), (&[0][..], 1));
    assert_eq!(outcome.results.len(), 1);
    assert_eq!(outcome.results[0].verdict, Verdict::Failed);
    let (bounce, envelope, bytes) = outcome.creates[0].clone();
    assert_eq!((envelope.sender.as_str(), envelope.recipients[0].address.as_str()), ("", "s@x"));
    let message = MessageParser::default().parse(&bytes[..]).unwrap();
    let status = String::from_utf8_lossy(message.parts[2].contents()).into_owned();
    assert!(status.contains("Final-Recipient: rfc822; a@y\r\nAction: failed"), "{status}");
    assert!(!String::from_utf8_lossy(&bytes).contains("why"), "the reason is for the records");

    // The other one leaves without a word, and so does a bounce, which nobody could be told of.
    assert_eq!(operate(Verb::Drop, &[0, 1]).await, Ok(()));
    assert!(setting.queue.message(id).is_none());
    assert_eq!(operate(Verb::Drop, &[1]).await, Err("it has left the queue".to_owned()));
    setting.until("the bounce is tried", || setting.outcomes().len() == 4).await;
    let of_bounce =
        async |verb| setting.deliverer.operate(&*setting.queue, bounce, &[0], &wanted(verb)).await;
    assert!(of_bounce(Verb::Bounce).await.unwrap_err().contains("drop it"));
    assert_eq!(of_bounce(Verb::Drop).await, Ok(()));
    assert_eq!(setting.queue.len(), 0);

    setting.until("logged", || setting.mainlog().matches("Completed").count() == 2).await;
    let log = setting.mainlog();
    for expected in [
        format!("{id} ** a@y F=<s@x> P=<s@x>: delivery cancelled by an administrator"),
        format!("{id} bounced by anna for a@y: why\\nnot"),
        format!("{id} dropped by anna for b@y: why\\nnot"),
        format!("{bounce} <= <> R={id}"),
        format!("{bounce} dropped by anna for s@x: why\\nnot"),
    ] {
        assert!(log.contains(&expected), "{expected}: {log}");
    }
}

#[tokio::test]
async fn a_message_is_held_released_and_redirected() {
    let server = Server::start(Script::default()).await;
    let there = destination(&[&server], Protocol::Smtp);
    let mut table = waiting(&["a@y"]);
    table.routes.insert("b@z".to_owned(), vec![deliver_to("b@z", &there)]);
    let setting = Setting::new(table);
    let id = setting.put(1, "s@x", &["a@y"]);
    setting.until("tried", || setting.outcomes().len() == 1).await;
    let operate =
        async |verb| setting.deliverer.operate(&*setting.queue, id, &[0], &wanted(verb)).await;
    let message = || setting.queue.message(id).unwrap();
    let due = message().recipients[0].next_due;
    assert_eq!(operate(Verb::Hold).await, Ok(()));
    assert_eq!(message().state, MessageState::Held);
    assert!(operate(Verb::Hold).await.unwrap_err().contains("already"));
    assert!(operate(Verb::Retry).await.unwrap_err().contains("release it"));
    let redirect = |to: &str| Verb::Redirect { to: to.to_owned() };
    assert!(operate(redirect("b\r\nDATA@z")).await.unwrap_err().contains("SMTP"));
    let many =
        setting.deliverer.operate(&*setting.queue, id, &[0; 101], &wanted(redirect("b@z"))).await;
    assert!(many.unwrap_err().contains("100 can be redirected at once"));
    assert_eq!(operate(redirect("b@z")).await, Ok(()));
    let recipient = message().recipients[0].clone();
    assert_eq!((recipient.recipient.address.as_str(), recipient.next_due), ("b@z", due));
    assert_eq!(recipient.state, RecipientState::New);
    assert!(server.complete().is_empty());
    assert_eq!(operate(Verb::Release).await, Ok(()));
    setting.until("delivered", || setting.queue.len() == 0).await;
    assert_eq!(server.complete()[0].rcpts, ["RCPT TO:<b@z>"]);
    let released = format!("{id} released by anna: why\\nnot");
    setting.until("logged", || setting.mainlog().contains(&released)).await;
    let log = setting.mainlog();
    assert!(log.contains(&format!("{id} redirected by anna for a@y to b@z: why\\nnot")), "{log}");
}

#[tokio::test]
async fn nobody_is_given_up_while_an_attempt_is_under_way() {
    let greets = Arc::new(Notify::new());
    let script = Script { greets: Some(Arc::clone(&greets)), ..Script::default() };
    let server = Server::start(script).await;
    let there = destination(&[&server], Protocol::Smtp);
    let mut table = Table::default();
    table.routes.insert("a@y".to_owned(), vec![deliver_to("a@y", &there)]);
    let setting = Setting::new(table);
    let id = setting.put(1, "s@x", &["a@y"]);
    setting.until("in flight", || setting.deliverer.attempts_in_flight(1) == 1).await;
    let operate =
        async |verb| setting.deliverer.operate(&*setting.queue, id, &[0], &wanted(verb)).await;
    assert!(operate(Verb::Drop).await.unwrap_err().contains("under way"));
    assert_eq!(operate(Verb::Retry).await, Ok(()), "who changes a date does not wait");
    greets.notify_one();
    setting.until("delivered", || setting.queue.len() == 0).await;
    assert_eq!(server.complete().len(), 1);
}
