package bus

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// killedDir names the folder for the child of TestAcceptedSurvivesKill.
const killedDir = "DOZE_TEST_KILLED_DIR"

// TestAcceptedSurvivesKill kills a process with SIGKILL while it accepts events and stores
// retries, and finds every acknowledged one in its folder.
func TestAcceptedSurvivesKill(t *testing.T) {
	if dir := os.Getenv(killedDir); dir != "" {
		acceptUntilKilled(t, dir)
		return
	}
	s := newStore(t, StreamsConfig{}) // makes the streams
	s.stop()
	child := exec.Command(os.Args[0], "-test.run=^TestAcceptedSurvivesKill$")
	child.Env = append(os.Environ(), killedDir+"="+s.dir)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	accepted := map[string]bool{}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "accepted "); ok {
			accepted[id] = true
			if len(accepted) == 400 {
				if err := child.Process.Kill(); err != nil {
					t.Error(err)
				}
			}
		}
	}
	_ = child.Wait() // killed
	if len(accepted) < 400 {
		t.Fatalf("the child accepted only %d", len(accepted))
	}

	s.start()
	deliveries, _ := poll(t, s.conn.Events(1), EventLimits{Events: 4096, Bytes: 64 << 20})
	for len(accepted) > 0 {
		d := receive(t, deliveries)
		delete(accepted, hex.EncodeToString(d.Event.Id)) // what was stored and not acknowledged may come, too
		if err := d.Ack(); err != nil {
			t.Fatal(err)
		}
	}
}

func acceptUntilKilled(t *testing.T, dir string) {
	log := slog.New(slog.DiscardHandler)
	server, err := StartServer(ServerConfig{
		Name: "store", StoreDir: dir, MemoryBytes: 1 << 20, StoreBytes: MinStorageBytes, SyncInterval: time.Minute, Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := Connect(context.Background(), ConnConfig{Name: "store", Server: server, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	e := conn.Events(1)
	for i := 0; i < 1<<20; i++ {
		event := testEvent("f", make([]byte, i%2000))
		if i%2 == 0 {
			err = e.PublishEvent(context.Background(), event)
		} else {
			event.Attempt = 1
			err = e.RetryAt(context.Background(), event, time.Now().Add(time.Second))
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("accepted " + hex.EncodeToString(event.Id))
	}
}
