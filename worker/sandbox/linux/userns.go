//go:build linux

package linux

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// identities says who is who in the user namespace of a worker without root: as whom the launcher has all
// capabilities there, and which subordinate ids of the worker's user the instances have.
type identities struct {
	uid, gid int // the worker's, outside
	// sub are the subordinate uids and gids that are mapped to 1 and up inside, where the launcher is 0. Without any,
	// the one id that is mapped is everybody's.
	subUID, subGID, count int
	// why says what the subordinate ids lack, "" when they are there.
	why string
	// settled: a user namespace has been made with them, and another one must be like it.
	settled bool
}

// soleUID is the uid inside of all, where only one is mapped: the one that AWS has.
const soleUID = 993

// findIdentities looks up the subordinate ids of this user.
func findIdentities() *identities {
	ids := &identities{uid: unix.Geteuid(), gid: unix.Getegid()}
	for _, tool := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(tool); err != nil {
			ids.why = tool + " is not installed (package uidmap, or shadow-utils)"
			return ids
		}
	}
	name := strconv.Itoa(ids.uid)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	var countUID, countGID int
	ids.subUID, countUID = subordinate("/etc/subuid", name, ids.uid)
	ids.subGID, countGID = subordinate("/etc/subgid", name, ids.uid)
	if ids.count = min(countUID, countGID, 1<<16); ids.count < 2 {
		ids.count = 0
		ids.why = fmt.Sprintf("/etc/subuid and /etc/subgid give %s no ids (as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s)", name, name)
	}
	return ids
}

// subordinate finds the largest range of a user in /etc/subuid or /etc/subgid: lines of NAME-OR-UID:FIRST:COUNT.
func subordinate(path, name string, uid int) (first, count int) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, 0
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		f := strings.Split(strings.TrimSpace(s.Text()), ":")
		if len(f) != 3 || f[0] != name && f[0] != strconv.Itoa(uid) {
			continue
		}
		from, err1 := strconv.ParseUint(f[1], 10, 31)
		n, err2 := strconv.ParseUint(f[2], 10, 31)
		if err1 == nil && err2 == nil && int(n) > count {
			first, count = int(from), int(n)
		}
	}
	return first, count
}

// distinct tells whether each instance has a uid of its own.
func (ids *identities) distinct() bool { return ids.why == "" }

// enter forks a launcher into a user and a mount namespace of its own and maps the ids. Where the tools refuse the
// subordinate ids, one id is mapped and ids say why.
func (ids *identities) enter(base *launcher) (*launcher, error) {
	l, err := base.fork(unix.CLONE_NEWUSER | unix.CLONE_NEWNS)
	if err != nil {
		return nil, noUserNamespace(err)
	}
	if ids.distinct() {
		err = ids.mapRange(l.pid)
		if err != nil && !ids.settled {
			ids.why, err = err.Error(), nil
		}
	}
	if !ids.distinct() {
		err = ids.mapSole(l.pid)
	}
	ids.settled = true
	if err != nil {
		l.behind = nil // the caller's
		l.close()
		return nil, noUserNamespace(err)
	}
	return l, nil
}

func (ids *identities) mapRange(pid int) error {
	for _, m := range []struct {
		tool      string
		id, first int
	}{{"newgidmap", ids.gid, ids.subGID}, {"newuidmap", ids.uid, ids.subUID}} {
		out, err := exec.Command(m.tool, strconv.Itoa(pid), "0", strconv.Itoa(m.id), "1",
			"1", strconv.Itoa(m.first), strconv.Itoa(ids.count)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", m.tool, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

func (ids *identities) mapSole(pid int) error {
	for _, f := range [][2]string{
		{"setgroups", "deny"}, {"gid_map", fmt.Sprintf("%d %d 1", soleUID, ids.gid)}, {"uid_map", fmt.Sprintf("%d %d 1", soleUID, ids.uid)},
	} {
		path := fmt.Sprintf("/proc/%d/%s", pid, f[0])
		if err := os.WriteFile(path, []byte(f[1]), 0); err != nil {
			return err
		}
	}
	return nil
}

// userNamespaceSwitches are the files that forbid user namespaces to ordinary users, with the value that does, who
// has it, and what to do.
var userNamespaceSwitches = []struct{ path, closed, fix string }{
	{"/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"},
	{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"},
	{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
		"sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for doze with the rule `userns,`"},
}

// closedSwitch names the switch that forbids user namespaces here, and how to open it; "" for none.
func closedSwitch() (setting, fix string) {
	for _, s := range userNamespaceSwitches {
		b, err := os.ReadFile(s.path)
		if err == nil && strings.TrimSpace(string(b)) == s.closed {
			name := strings.ReplaceAll(strings.TrimPrefix(s.path, "/proc/sys/"), "/", ".")
			return name + "=" + s.closed, s.fix
		}
	}
	return "", ""
}

// noUserNamespace says how to get what an ordinary user lacks, if it is the machine that refuses it.
func noUserNamespace(err error) error {
	refused := false
	for _, errno := range []unix.Errno{unix.EPERM, unix.EACCES, unix.ENOSPC, unix.EUSERS, unix.EINVAL, unix.ENOSYS} {
		refused = refused || errors.Is(err, errno)
	}
	if !refused {
		return err
	}
	if setting, fix := closedSwitch(); setting != "" {
		return fmt.Errorf("user namespaces are closed to ordinary users here: %s (open them, as root: %s): %w", setting, fix, err)
	}
	return fmt.Errorf("an ordinary user needs user namespaces, and this system refuses them (a container's seccomp profile, a chroot, "+
		"or a /proc with parts mounted over does): %w", err)
}
