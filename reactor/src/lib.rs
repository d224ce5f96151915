//! One core, one io_uring: tasks, timers, sockets, disks, buffers, mailboxes; and a simulated world behind the same seam
