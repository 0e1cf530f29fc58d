//go:build linux

package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// modules are what the guest needs to reach its root. A kernel that has one built in has no file for it.
var modules = []string{
	"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
	"fscache", "netfs", "9pnet", "9pnet_virtio", "9p",
}

// metaPackage depends on Debian's current kernel. The smaller cloud kernel has no 9p.
const metaPackage = "linux-image-amd64"

// kernel is an unpacked kernel: its image, and the modules that exist.
type kernel struct {
	image   string
	modules []string
}

// fetchKernel downloads Debian's current kernel package and unpacks what is needed of it to a folder of its name
// below dir, unless it is there.
func fetchKernel(ctx context.Context, dir string) (*kernel, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, errors.New("fetching Debian's kernel needs apt-get")
	}
	out, err := command(ctx, "", "apt-cache", "depends", "--important", metaPackage)
	if err != nil {
		return nil, err
	}
	_, behind, _ := strings.Cut(out, "Depends: ")
	name, _, _ := strings.Cut(behind, "\n")
	if !strings.HasPrefix(name, "linux-image-") {
		return nil, fmt.Errorf("apt knows no package that %s depends on (apt-get update?): %q", metaPackage, out)
	}
	to := filepath.Join(dir, name)
	if _, err := os.Stat(to); err != nil {
		if err := unpackKernel(ctx, name, to); err != nil {
			return nil, fmt.Errorf("kernel %s: %w", name, err)
		}
	}
	k := &kernel{image: filepath.Join(to, "vmlinuz")}
	for _, m := range modules {
		if file := filepath.Join(to, m+".ko"); exists(file) {
			k.modules = append(k.modules, file)
		}
	}
	return k, nil
}

// unpackKernel leaves a whole folder or none.
func unpackKernel(ctx context.Context, name, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(to), "fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if _, err := command(ctx, tmp, "apt-get", "download", "-qq", name); err != nil {
		return err
	}
	packages, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(packages) != 1 {
		return fmt.Errorf("apt-get download left %v", packages)
	}
	unpacked := filepath.Join(tmp, "unpacked")
	if err := os.Mkdir(unpacked, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", packages[0])
	cmd.Stderr = os.Stderr
	stream, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = pick(tar.NewReader(stream), unpacked)
	io.Copy(io.Discard, stream) // the end of the archive
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return err
	}
	for _, needed := range []string{"vmlinuz", "9p.ko"} {
		if !exists(filepath.Join(unpacked, needed)) {
			return fmt.Errorf("the package has no %s", needed)
		}
	}
	return os.Rename(unpacked, to)
}

// pick writes the kernel's image and the modules to dir, modules without compression.
func pick(archive *tar.Reader, dir string) error {
	for {
		h, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		base := path.Base(h.Name)
		name, isModule := strings.CutSuffix(strings.TrimSuffix(base, ".xz"), ".ko")
		name = strings.ReplaceAll(name, "-", "_")
		var to string
		switch {
		case h.Typeflag != tar.TypeReg:
			continue
		case strings.HasPrefix(base, "vmlinuz-"):
			to = "vmlinuz"
		case isModule && slices.Contains(modules, name):
			to = name + ".ko"
		default:
			continue
		}
		f, err := os.Create(filepath.Join(dir, to))
		if err != nil {
			return err
		}
		if strings.HasSuffix(base, ".xz") {
			xz := exec.Command("xz", "-dc")
			xz.Stdin, xz.Stdout, xz.Stderr = archive, f, os.Stderr
			err = xz.Run()
		} else {
			_, err = io.Copy(f, archive)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

// command runs a program and gives its output; its words are in the error.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return "", fmt.Errorf("%s: %w: %s", cmd, err, exit.Stderr)
	}
	return string(out), err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
