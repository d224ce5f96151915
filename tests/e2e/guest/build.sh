#!/bin/sh
# Builds the guest of the end-to-end tests: `build.sh OUT SOURCES`, as root on Debian.
# OUT gets vmlinuz, initrd.cpio and root.img; SOURCES is an apt sources list for bookworm.
#
# A disk image, not one large initrd: 5 s to the agent under emulation instead of 25 s. Debian's kernel has
# virtio_blk and ext4 as modules, so a very small initrd loads these and hands over.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
sources=$2
root=$out/root
initrd=$out/initrd

# nvme-cli, fio and the file systems for the scenarios; open-iscsi and multipath-tools for hosts that attach by
# iSCSI; busybox-static for the initrd.
mmdebstrap --quiet --mode=root --variant=minbase --format=directory \
    --include=nvme-cli,open-iscsi,multipath-tools,fio,e2fsprogs,xfsprogs,kmod,iproute2,udev,busybox-static \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook="$here/kernel.sh" \
    bookworm "$root" - <"$sources"
install -m 755 "$here/init.sh" "$root/init"
mkdir -p "$root/share"
mv "$root/boot/vmlinuz" "$out/vmlinuz"

# Numbered, so that the initrd loads them in the order of their dependencies. Uncompressed, because
# unpacking is slow under emulation.
mkdir -p "$initrd/bin" "$initrd/dev" "$initrd/modules" "$initrd/root"
install -m 755 "$root/bin/busybox" "$initrd/bin/busybox"
install -m 755 "$here/initrd-init.sh" "$initrd/init"
version=$(ls "$root/lib/modules")
number=10
for module in $(
    for name in virtio_pci virtio_blk crc32c_generic ext4; do
        chroot "$root" modprobe --set-version "$version" --show-depends "$name"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
); do
    xz --decompress --stdout "$root$module" >"$initrd/modules/$number-$(basename "$module" .xz)"
    number=$((number + 1))
done
(cd "$initrd" && find . | ./bin/busybox cpio -o -H newc 2>/dev/null) >"$out/initrd.cpio"

# No journal: the image is never written to, each boot works on a snapshot of it.
mke2fs -q -t ext4 -O ^has_journal -d "$root" "$out/root.img" 640M
rm -rf "$root" "$initrd"
