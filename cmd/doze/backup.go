package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/doze-run/doze/control/backup"
	"github.com/doze-run/doze/control/quorum"
)

const backupLong = `

In it are functions with all versions, aliases, policies, tags and settings, access keys (their
secrets sealed), the bill, and every code package. Not in it are events and retries that wait,
usage that is not on the bill yet, log lines, and the cluster key: keep a copy of that file
(cluster.key in the data folder, or --cluster-key-file) apart from backups, because access keys are
worth nothing without it.`

// backupReport is what --json prints of a backup and of a restoration.
type backupReport struct {
	File     string          `json:"file"`
	Bytes    int64           `json:"bytes"`
	Manifest backup.Manifest `json:"manifest"`
	Proof    backup.Proof    `json:"proof"`
}

func newBackupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup FILE|DIR",
		Short: "Write everything that the platform keeps into a file",
		Long: `Write everything that the platform keeps into a file, while it runs: its state as of now, and the code
that it names. What was written is checked before the file has its name. With --auth it takes a key
of role root.` + backupLong,
		Example: `  doze backup /var/backups/doze           # a new file, doze-TIME.tar, in that folder
  doze backup before-upgrade.tar`,
		Args: namedArgs("a FILE, or a folder for one"),
	}
	asJSON := addJSONFlag(cmd, "what is in the file")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path := args[0]
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			path = filepath.Join(path, "doze-"+time.Now().UTC().Format("20060102T150405Z")+".tar")
		}
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%s is there already, and may be the only backup there is: choose another name", path)
		}
		c, err := clientOf(cmd)
		if err != nil {
			return err
		}
		body, err := c.open(cmd.Context(), "/doze/v1/backup", nil)
		if err != nil {
			return err
		}
		defer body.Close()
		report, err := saveBackup(path, body, newProgress(cmd.ErrOrStderr()))
		if err != nil {
			return c.explain(err)
		}
		warnMissing(cmd.ErrOrStderr(), report.Proof)
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), report)
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), report.File)
		return err
	}
	return cmd
}

// saveBackup writes what it reads into a file that has its name only when it is whole and on the disk.
func saveBackup(path string, from io.Reader, progress *progress) (_ *backupReport, err error) {
	file, err := os.CreateTemp(filepath.Dir(path), ".doze-backup-*") // mode 0600
	if err != nil {
		return nil, err
	}
	defer func() {
		// After a rename there is nothing of that name.
		if failed := os.Remove(file.Name()); failed != nil && !errors.Is(failed, fs.ErrNotExist) {
			err = errors.Join(err, failed)
		}
	}()
	written := &counter{w: file}
	manifest, proof, err := backup.Read(io.TeeReader(from, written), progress.into())
	progress.end(proof, err)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		// Not over a file that has come meanwhile.
		err = os.Link(file.Name(), path)
	}
	if err == nil {
		err = syncFolder(filepath.Dir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("no backup was made: %w", err)
	}
	return &backupReport{File: path, Bytes: written.n, Manifest: manifest, Proof: proof}, nil
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

func warnMissing(to io.Writer, p backup.Proof) {
	if n := len(p.Missing); n > 0 {
		fmt.Fprintf(to, "%s that functions name %s not in the code store, and so not in the backup: upload the code again\n", plural(n, "code package"), map[bool]string{true: "is", false: "are"}[n == 1])
		for _, sha := range p.Missing {
			fmt.Fprintf(to, "  %s\n", sha)
		}
	}
}

// counter counts what goes through it.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// progress tells a person how far the reading of a backup has come: on a terminal every little while, else
// at the turns.
type progress struct {
	to       io.Writer
	live     bool
	shown    time.Time
	packages int
	of       int
	bytes    int64
}

func newProgress(to io.Writer) *progress { return &progress{to: to, live: isTerminal(to)} }

func (p *progress) into() backup.Into {
	return backup.Into{
		State: func(m backup.Manifest, s quorum.State) error {
			p.of = len(s.Registry.Packages())
			fmt.Fprintf(p.to, "state of %s: %s, %s, bill; %s\n", m.MadeAt, plural(s.Registry.Len(), "function"), plural(s.Registry.Keys(), "access key"), plural(p.of, "code package"))
			return nil
		},
		Package: func(_ string, bytes int64, _ io.Reader) error {
			p.packages++
			p.bytes += bytes
			p.show()
			return nil
		},
	}
}

func (p *progress) show() {
	if p.live && time.Since(p.shown) > 200*time.Millisecond {
		p.shown = time.Now()
		fmt.Fprintf(p.to, "\r\x1b[Kcode: %d of %d, %s", p.packages, p.of, size(p.bytes))
	}
}

func (p *progress) end(proof backup.Proof, err error) {
	if p.live && !p.shown.IsZero() {
		fmt.Fprint(p.to, "\r\x1b[K")
	}
	if err == nil {
		fmt.Fprintf(p.to, "checked: %s of code, state %s\n", size(proof.PackageBytes), proof.StateHash)
	}
}
