package testenv

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/doze-run/doze/worker/sandbox/sandboxtest"
)

// StartDevAs is StartDev as an ordinary user, with its data where such a user has it without a flag.
func StartDevAs(t testing.TB, u *sandboxtest.User, flags ...string) *Dev {
	t.Helper()
	return startDevAs(t, u, u.Command, flags...)
}

func startDevAs(t testing.TB, u *sandboxtest.User, command func(string, ...string) *exec.Cmd, flags ...string) *Dev {
	t.Helper()
	d := &Dev{t: t, binary: u.Program(t, Binary(t)), DataDir: filepath.Join(u.Home, ".local", "state", "doze"), args: flags, command: command,
		verb: "dev", places: []string{"--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"}, KeyID: "AKIDTEST", Secret: "secret"}
	d.run()
	return d
}
