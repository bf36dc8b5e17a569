#!/bin/bash
# kernel.sh ROOT - gives a root that mmdebstrap is making Debian's kernel; leaves vmlinuz and initrd-modules beside itself.
#
# The kernel package is fetched with the root's own apt configuration and only unpacked: no initramfs-tools, no
# update-initramfs, which takes minutes under emulation. Driver families that nothing here emulates are left out.
set -euo pipefail
root=$1
cd "$(dirname "$0")"
rm -rf kernel vmlinuz initrd-modules linux-image-*.deb
export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
case $(chroot "$root" dpkg --print-architecture) in
    arm64) meta=linux-image-arm64 ;;  # not linux-image-cloud-arm64: that has neither USB nor MMC
    armhf) meta=linux-image-armmp-lpae ;;
    amd64) meta=linux-image-amd64 ;;
esac
image=$(apt-cache depends --important "$meta" | sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*\).*/\1/p' | head -n 1)
apt-get -qq -o APT::Sandbox::User=root download "$image"
mkdir kernel
dpkg-deb -x linux-image-*.deb kernel
modules=kernel/lib/modules
[ -d "$modules" ] || modules=kernel/usr/lib/modules
version=$(basename "$modules"/*)
cp "kernel/boot/vmlinuz-$version" vmlinuz
(
    cd "$modules/$version"
    rm -f build source
    cd kernel
    rm -rf sound drivers/{gpu,media,infiniband,staging,iio,isdn,accel,comedi,fpga,vfio,xen,hv,video} \
        drivers/net/{wireless,ethernet,can,phy,dsa,wwan} \
        drivers/scsi/{lpfc,qla2xxx,bfa,aic7xxx,mpt3sas,megaraid,hisi_sas,isci,qla4xxx,qedf,qedi,be2iscsi} \
        drivers/scsi/{bnx2i,bnx2fc,cxgbi,csiostor,fnic,smartpqi,mpi3mr,aacraid,pm8001,elx} \
        fs/{ocfs2,gfs2,xfs,btrfs,ceph,nfs,nfsd,smb,cifs,jfs,reiserfs,afs,dlm,bcachefs,ubifs,f2fs,orangefs,nilfs2} \
        fs/{udf,ntfs3,coda} \
        net/{sctp,tipc,rds,dccp,ceph,mac80211,wireless,bluetooth,batman-adv,openvswitch,smc,nfc,rxrpc} \
        net/{ieee802154,mac802154,6lowpan,can}
)
mkdir -p "$root/usr/lib/modules"
cp -a "$modules/$version" "$root/usr/lib/modules/"
chroot "$root" depmod "$version"
# The modules that reach the disk, in the order in which they load; one that is built in gives no line.
for module in virtio_pci virtio_mmio virtio_blk virtio_console ext4 crc32c_generic sdhci_pci mmc_block; do
    chroot "$root" modprobe -S "$version" --show-depends "$module" 2>&1 | sed -n 's/^insmod \([^ ]*\).*/\1/p' || true
done | awk '!seen[$0]++' >initrd-modules
rm -rf kernel linux-image-*.deb
