//! Who may join.

use crate::faked::{TOKEN, hello};
use flotilla_coordinator::fleet::Fleet;
use flotilla_proto::wire::fleet_client::FleetClient;
use flotilla_proto::wire::{FromWorker, from_worker};
use flotilla_proto::{Hello, PROTOCOL};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

/// Says `first` to a coordinator; how it was refused, or none if it was not.
async fn say(fleet: &Fleet, token: &str, first: from_worker::Message) -> Option<Status> {
    let endpoint = Endpoint::from_shared(format!("http://{}", fleet.address())).unwrap();
    let mut client = FleetClient::new(endpoint.connect().await.unwrap());
    let (says, outbox) = tokio::sync::mpsc::unbounded_channel();
    says.send(FromWorker { message: Some(first) }).unwrap();
    let mut request = Request::new(UnboundedReceiverStream::new(outbox));
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    client.join(request).await.err()
}

#[tokio::test]
async fn who_speaks_another_protocol_hears_both_versions() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    for protocol in [0, PROTOCOL - 1, PROTOCOL + 1, u32::MAX] {
        let other = from_worker::Message::Hello((&Hello { protocol, ..hello() }).into());
        let refused = say(&fleet, TOKEN, other).await.expect("it is refused");
        let words = format!(
            "this coordinator ({}) speaks protocol {PROTOCOL}, the worker (9.9.9) protocol {protocol}\n\
             hint: run the same version on both",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!((refused.code(), refused.message()), (Code::FailedPrecondition, words.as_str()));
    }
    assert_eq!(fleet.pool().count(), 0);
    let same = from_worker::Message::Hello((&hello()).into());
    assert!(say(&fleet, TOKEN, same).await.is_none());
}

#[tokio::test]
async fn who_does_not_know_the_token_or_does_not_say_hello_is_refused() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let good = || from_worker::Message::Hello((&hello()).into());
    for token in ["", "another", "a-token "] {
        let refused = say(&fleet, token, good()).await.expect("it is refused");
        assert_eq!(refused.code(), Code::Unauthenticated, "{token:?}");
    }
    let released = from_worker::Message::Released(Default::default());
    let refused = say(&fleet, TOKEN, released).await.expect("it is refused");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "the first message must be Hello")
    );
}

/// It could try as many as it likes, with a line of the log for each.
#[tokio::test]
async fn one_token_may_be_tried_on_a_connection() {
    let fleet = Fleet::listen(([127, 0, 0, 1], 0).into(), TOKEN, None, None).await.unwrap();
    let endpoint = Endpoint::from_shared(format!("http://{}", fleet.address())).unwrap();
    let client = FleetClient::new(endpoint.connect().await.unwrap());
    let fetch = async |client: &FleetClient<_>, token: &str| {
        let mut request = Request::new(flotilla_proto::wire::FetchRequest::default());
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        client.clone().fetch(request).await.expect_err("there is nothing to fetch")
    };
    // One behind the other on one connection.
    let (wrong, right) = tokio::join!(fetch(&client, "another"), fetch(&client, TOKEN));
    for refused in [wrong, right] {
        assert!(!refused.message().contains("no weights"), "it was let in: {refused:?}");
    }
    // A new connection is as good as any.
    let client = FleetClient::new(endpoint.connect().await.unwrap());
    assert!(fetch(&client, TOKEN).await.message().contains("no weights"));
}
