#
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# What every image of ours must be, on the target.
from oeqa.runtime.case import OERuntimeTestCase
from oeqa.core.decorator.depends import OETestDepends


class Kentledge(OERuntimeTestCase):
    def ok(self, line):
        status, output = self.target.run(line)
        self.assertEqual(status, 0, "%s: %s" % (line, output))
        return output

    @OETestDepends(["ssh.SSHTest.test_ssh"])
    def test_daemon_is_ready(self):
        self.ok("systemctl is-active kentledge.service")
        self.ok("kentledge status")

    def test_root_is_read_only(self):
        self.assertIn("ro", self.ok("findmnt -no OPTIONS /").split(","))
        self.ok("mountpoint -q /data")

    def test_slot_is_known(self):
        self.ok("grep -q rauc.slot= /proc/cmdline || test -s /run/kentledge-slot")
        self.ok("rauc status")

    def test_boot_check_told_the_boot_loader(self):
        self.ok("systemctl is-active boot-complete.target")

    def test_nobody_has_a_password(self):
        self.ok("! cut -d: -f2 /etc/shadow | grep -qv '^[!*]*$'")

    def test_no_setuid(self):
        self.assertEqual(self.ok("find / -xdev -perm /6000 -type f | wc -l").strip(), "0")
