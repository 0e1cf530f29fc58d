package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/spf13/cobra"

	"github.com/doze-run/doze/control/backup"
)

func newRestoreCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Put a backup into a new, empty cluster",
		Long: `Put a backup into a new, empty cluster, or an empty 'doze dev', that runs: start control nodes with
empty data folders and with the cluster key file of the cluster that the backup is of
(--cluster-key-file), then restore by way of any of them. A cluster that has functions, access keys
but for root's, or a bill is refused. All or nothing of the state is restored, and the end says that
its hash is the one in the backup's proof.

With --auth it takes the key of role root of the new cluster; from then on the keys are those of the
backup. Workers of the old cluster start with empty data folders too.` + backupLong,
		Example: `  doze restore doze-20260131T120000Z.tar
  doze restore doze-20260131T120000Z.tar --check   # only look whether the file is whole`,
		Args: namedArgs("the FILE of a backup"),
	}
	check := cmd.Flags().Bool("check", false, "only check the file; ask no platform")
	without := cmd.Flags().Bool("without-cluster-key", false, "restore although the cluster key that seals the backup's access keys is lost: they have to be revoked then")
	asJSON := addJSONFlag(cmd, "what was restored")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		file, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer file.Close()
		// The hash of all of it is needed first, to sign with; and what is damaged need not be sent.
		sum := sha256.New()
		progress := newProgress(cmd.ErrOrStderr())
		manifest, proof, err := backup.Read(io.TeeReader(file, sum), progress.into())
		progress.end(proof, err)
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		warnMissing(cmd.ErrOrStderr(), proof)
		length, err := file.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		report := &backupReport{File: args[0], Bytes: length, Manifest: manifest, Proof: proof}
		if !*check {
			c, err := clientOf(cmd)
			if err != nil {
				return err
			}
			if report.Proof, err = c.restore(cmd.Context(), file, length, hex.EncodeToString(sum.Sum(nil)), *without); err != nil {
				return err
			}
			if report.Proof.StateHash != proof.StateHash {
				return fmt.Errorf("the cluster answers that its state is %s now, and the backup's is %s", report.Proof.StateHash, proof.StateHash)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "restored: the state's hash is that of the backup; keys and root key are the backup's now\n")
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), report)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s, %s, %s (%s), %d requests on the bill\n", plural(proof.Functions, "function"), plural(proof.Keys, "access key"),
			plural(proof.Packages, "code package"), size(proof.PackageBytes), proof.Totals.Requests)
		return err
	}
	return cmd
}

// restore sends a file, whose hash it has, and answers what the cluster then holds.
func (c *client) restore(ctx context.Context, file *os.File, size int64, hash string, withoutKey bool) (backup.Proof, error) {
	var proof backup.Proof
	target := c.endpoint + "/doze/v1/restore"
	if withoutKey {
		target += "?withoutClusterKey=true"
	}
	// One that reads from the start whatever was read before, and does not close the file.
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, io.NopCloser(io.NewSectionReader(file, 0, size)))
	if err != nil {
		return proof, err
	}
	req.ContentLength = size
	req.Header.Set("User-Agent", "doze/"+version)
	req.Header.Set("Content-Type", "application/x-tar")
	req.Header.Set("X-Amz-Content-Sha256", hash)
	if err := v4.NewSigner().SignHTTP(ctx, c.credentials, req, hash, "lambda", c.region, time.Now()); err != nil {
		return proof, fmt.Errorf("sign the request: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return proof, c.explain(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxReplyBytes))
	switch {
	case err != nil:
		return proof, c.explain(err)
	case resp.StatusCode/100 != 2:
		return proof, c.explain(refusalOf(resp, data))
	}
	if err := json.Unmarshal(data, &proof); err != nil {
		return proof, fmt.Errorf("%s does not answer as Doze does: %w", target, err)
	}
	return proof, nil
}
