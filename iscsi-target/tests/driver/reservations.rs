//! Reservations between hosts, and on the shelf where they outlive the target (I38).

use iscsi_target::Reservations;
use iscsi_target_protocol::initiator::connection::Data;

use crate::util::{BLOCK, Client, Stage};

const CONFLICT: u8 = 0x18;

async fn out(client: &mut Client, action: u8, kind: u8, key: u8, action_key: u8) -> u8 {
    let mut list = [0; 24];
    (list[7], list[15]) = (key, action_key);
    let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24];
    client.command(&cdb, Data::Send(24), &list).await.expect("an answer").status
}

#[test]
fn a_reservation_keeps_others_out_and_is_on_the_shelf_before_it_is_answered() {
    let stage = Stage::memory(1);
    let shelf = std::rc::Rc::clone(&stage.shelf);
    stage.host(async move {
        let (mut one, mut other) = (Client::ready(1).await, Client::ready(2).await);
        assert_eq!(out(&mut one, 0, 0, 0, 7).await, 0);
        assert_eq!(out(&mut one, 1, 3, 7, 0).await, 0);
        let record = shelf.record.borrow().clone();
        let kept = Reservations::decode(&record).expect("a record");
        assert_eq!(kept.encode(), record);
        assert_eq!(other.read(0, 1).await.unwrap().status, CONFLICT);
        assert_eq!(other.write(0, &vec![1; BLOCK as usize]).await.unwrap().status, CONFLICT);
        one.write(0, &vec![1; BLOCK as usize]).await.unwrap().good();
        // The session ends, the reservation does not.
        assert_eq!(one.logout().await.unwrap(), 0);
        assert_eq!(other.read(0, 1).await.unwrap().status, CONFLICT);
        let mut again = Client::ready(1).await;
        again.read(0, 1).await.unwrap().good();
    });
}

#[test]
fn a_reservation_that_cannot_be_kept_is_none() {
    let stage = Stage::memory(2);
    let shelf = std::rc::Rc::clone(&stage.shelf);
    stage.host(async move {
        let (mut one, mut other) = (Client::ready(1).await, Client::ready(2).await);
        assert_eq!(out(&mut one, 0, 0, 0, 7).await, 0);
        shelf.fails.set(true);
        assert_eq!(out(&mut one, 1, 3, 7, 0).await, 2);
        other.read(0, 1).await.unwrap().good();
        shelf.fails.set(false);
        assert_eq!(out(&mut one, 1, 3, 7, 0).await, 0);
        assert_eq!(other.read(0, 1).await.unwrap().status, CONFLICT);
    });
}
