#!/bin/sh
# Process 1 of the guest: a small Linux host with udev and network, and the agent that runs what the
# test on the other side asks for.
#
# The agent speaks over a virtio port, a line each way. In: `STEP SECONDS` runs /share/STEP.sh for at most so
# long, beside whatever else is running; its output goes to /share/STEP.out. Out: `STEP EXIT-CODE` when it
# ended (124: out of time), and `ready` once at the start. When the other side closes the port, the guest ends.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm

/lib/systemd/systemd-udevd --daemon
modprobe -a virtio_console virtio_net 9pnet_virtio 9p
udevadm trigger
udevadm settle

hostname ashlar-guest
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 share /share

port=/dev/virtio-ports/agent
exec 3<>"$port"
echo ready >&3
while read -r step seconds <&3; do
    (
        cd /tmp
        timeout --kill-after=5 "$seconds" sh -eu "/share/$step.sh" >"/share/$step.out" 2>&1 </dev/null 3>&-
        echo "$step $?" >&3
    ) &
done
echo o >/proc/sysrq-trigger
sleep 60
