#!/bin/busybox sh
# First process of the guest: loads what the root disk needs and hands over to it. A module that this
# processor cannot use (crc32c-intel) has a generic twin, so a failing one is no reason to stop.
for module in /modules/*; do
    /bin/busybox insmod "$module" 2>/dev/null
done
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /init
