package sandboxtest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// User is an ordinary user of this machine, for one test: with a home of its own, and an entry in /etc/passwd and perhaps
// subordinate ids that only its own processes see.
type User struct {
	UID  int
	Home string
	// Sub is the first of its 65536 subordinate ids, 0 without any.
	Sub int
	etc string // what is mounted over /etc/passwd, /etc/subuid and /etc/subgid
}

// userID and subID begin the ids of test users, which are nobody's: above what distributions give to people, and above
// what sandboxes of root take. Users of one time have different ones, so that their processes can be told apart.
const (
	userID   = 62_000
	subID    = 1_700_000_000
	userSlot = 3000
)

// NewUser makes one; the test must run as root. subordinate gives it 65536 ids. The test is skipped, and says why, where
// that cannot be.
func NewUser(t testing.TB, subordinate bool) *User {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user: run the tests as root to test how it is without")
	}
	need := []string{"unshare", "mount", "setpriv"}
	if subordinate {
		need = append(need, "newuidmap", "newgidmap")
	}
	for _, tool := range need {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s (apt-get install uidmap util-linux): %v", tool, err)
		}
	}
	home, err := os.MkdirTemp("", "doze-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	slot := (os.Getpid()*8 + int(serial.Add(1))) % userSlot
	u := &User{UID: userID + slot, Home: home, etc: t.TempDir()}
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	passwd = fmt.Appendf(passwd, "doze-test:x:%d:%d::%s:/bin/sh\n", u.UID, u.UID, home)
	ids := ""
	if subordinate {
		u.Sub = subID + slot<<16
		ids = fmt.Sprintf("doze-test:%d:65536\n", u.Sub)
	}
	for name, content := range map[string]string{"passwd": string(passwd), "subuid": ids, "subgid": ids} {
		if err := os.WriteFile(filepath.Join(u.etc, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat("/etc/" + name); err != nil {
			t.Fatalf("nothing can be mounted over /etc/%s: %v", name, err)
		}
	}
	u.Own(t, home)
	return u
}

// Own gives a file or an empty folder to the user.
func (u *User) Own(t testing.TB, path string) {
	t.Helper()
	if err := os.Chown(path, u.UID, u.UID); err != nil {
		t.Fatal(err)
	}
}

// Program copies a program to where the user can execute it.
func (u *User) Program(t testing.TB, path string) string {
	t.Helper()
	from, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.OpenFile(filepath.Join(u.Home, filepath.Base(path)), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(to, from)
	if closed := to.Close(); err == nil {
		err = closed
	}
	if err != nil {
		t.Fatal(err)
	}
	return to.Name()
}

// Command is a program that the user starts, in its home. Its process id is the program's own.
func (u *User) Command(program string, args ...string) *exec.Cmd {
	const become = `for f in passwd subuid subgid; do mount --bind "$0/$f" "/etc/$f" || exit 99; done
id=$1; shift; exec setpriv --reuid "$id" --regid "$id" --clear-groups "$@"`
	cmd := exec.Command("unshare", append([]string{"--mount", "/bin/sh", "-c", become, u.etc, strconv.Itoa(u.UID), program}, args...)...)
	cmd.Dir = u.Home
	cmd.Env = []string{"HOME=" + u.Home, "TMPDIR=" + u.Home, "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG=C.UTF-8"}
	return cmd
}
