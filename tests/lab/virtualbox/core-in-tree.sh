#!/bin/bash
# Runs where VirtualBox is installed: boots /lab/guest.iso and leaves /lab/guest.core, with what the guest said in /lab/guest.said.
export VBOX_USER_HOME=/lab/home LANG=C.UTF-8 LD_LIBRARY_PATH=/usr/lib/virtualbox
mkdir -p $VBOX_USER_HOME
manage() { VBoxManage "$@" 2>&1 | grep -vE '/dev/vboxdrv|virtualbox-dkms|headers|You will not|^[[:space:]]*$' || true; }
manage createvm --name guest --basefolder /lab/home --ostype Linux_64 --register
manage modifyvm guest --memory 192 --ioapic on --rtc-use-utc on --audio-enabled off --nic1 none --boot1 dvd --vm-execution-engine=recompiler \
    --uart1 0x3f8 4 --uart-mode1 file /lab/guest.said
manage storagectl guest --name ide --add ide
manage storageattach guest --storagectl ide --port 0 --device 0 --type dvddrive --medium /lab/guest.iso
/lab/headless -s guest & machine=$!
until grep -qs '^ready' /lab/guest.said; do
    kill -0 $machine || exit 1
    sleep 1
done
sleep 2
manage debugvm guest dumpvmcore --filename /lab/guest.core
manage controlvm guest poweroff
wait $machine
