#!/bin/sh
# mmdebstrap runs this as a customize hook: puts the newest 6.12 kernel of the guest's own apt sources
# into its root. Unpacked, not installed: an installation would pull in and run initramfs-tools.
set -eu
root=$1
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"

package=$(apt-cache search --names-only '^linux-image-6\.12\..*deb12-amd64-unsigned$' |
    cut -d' ' -f1 | sort -V | tail -n 1)
[ -n "$package" ] || { echo "the apt sources offer no linux-image-6.12.*+deb12-amd64-unsigned" >&2; exit 1; }

unpacked=$root/tmp/kernel
mkdir "$unpacked"
cd "$unpacked"
apt-get -qq -o APT::Sandbox::User=root download "$package"
dpkg-deb --extract ./*.deb .
version=$(ls lib/modules)
mv "boot/vmlinuz-$version" "$root/boot/vmlinuz"

# Hardware that a virtual machine does not have is three quarters of the modules.
(
    cd "lib/modules/$version/kernel"
    rm -rf sound arch/x86/kvm
    cd drivers
    rm -rf accel bluetooth comedi gpu hid hwmon iio infiniband input isdn media mmc mtd platform staging usb \
        net/can net/ethernet net/usb net/wireless
)
mkdir -p "$root/lib/modules"
mv "lib/modules/$version" "$root/lib/modules/"
cd /
rm -rf "$unpacked"
chroot "$root" depmod "$version"
