package registry

import (
	"encoding/base64"
	"encoding/hex"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// What AWS writes in the state and update fields of a function.
const (
	StatePending = "Pending"
	StateActive  = "Active"
	StateFailed  = "Failed"

	UpdateSuccessful = "Successful"
	UpdateInProgress = "InProgress"
	UpdateFailed     = "Failed"

	// reasonCreating goes with Pending, and (as recorded from AWS) with InProgress too.
	reasonCreating     = "The function is being created."
	reasonCreatingCode = "Creating"
)

// Command is one of the structs of command.go.
type Command interface {
	// number is the command's number in the log.
	number() byte
	// apply changes the state. The caller holds State.applying.
	apply(*State) (any, error)
}

// Apply carries out one command: wholly, or not at all when it answers an error, which is always
// an *Error. It keeps what the command points to; the caller must not change it afterwards. The
// answer is the *Function, *Version or *Policy after the change; see each command.
func (s *State) Apply(cmd Command) (any, error) {
	s.applying.Lock()
	defer s.applying.Unlock()
	return cmd.apply(s)
}

// get is the function that a command is about.
func (s *State) get(account, name string) (*Function, error) {
	f, ok := s.Function(account, name)
	if !ok {
		return nil, ErrNotFound.with(account + "/" + name)
	}
	return f, nil
}

// apply answers *Version: $LATEST, or version 1 when it also publishes.
func (c CreateFunction) apply(s *State) (any, error) {
	switch {
	case !IsName(c.Name) || !isWord(c.Account):
		return nil, ErrInvalid.with("name")
	case c.Version.RevisionID == "" || c.Version.Code.Size < 0:
		return nil, ErrInvalid.with("version")
	case len(c.Tags) > MaxTags:
		return nil, ErrTooManyTags
	}
	if _, ok := s.Function(c.Account, c.Name); ok {
		return nil, ErrExists.with(c.Name)
	}
	v := c.Version
	v.Version = Latest
	v.Incarnation = v.RevisionID
	v.State, v.StateReason, v.StateReasonCode = StatePending, reasonCreating, reasonCreatingCode
	v.UpdateStatus, v.UpdateReason, v.UpdateReasonCode = "", "", ""
	v.share()
	f := &Function{Account: same(c.Account), Name: c.Name, Latest: &v, NextVersion: 1}
	if len(c.Tags) > 0 {
		f.Tags = c.Tags
	}
	answer := &v
	if c.PublishRevisionID != "" {
		answer = f.publish(c.PublishRevisionID, v.LastModified, nil)
	}
	s.replace(nil, f)
	return answer, nil
}

// apply answers *Version: $LATEST, or the version published from it.
func (c UpdateCode) apply(s *State) (any, error) {
	f, v, err := s.edit(c.Account, c.Name, c.IfRevisionID)
	if err != nil {
		return nil, err
	}
	if c.RevisionID == "" || c.Code.Size < 0 {
		return nil, ErrInvalid.with("code")
	}
	v.Code = c.Code
	if c.Architectures != nil {
		v.Config.Architectures = c.Architectures
	}
	v.changed(c.RevisionID, c.At)
	next := *f
	next.Latest = v
	answer := v
	if c.PublishRevisionID != "" {
		answer = next.publish(c.PublishRevisionID, c.At, nil)
	}
	s.replace(f, &next)
	return answer, nil
}

// apply answers *Version: $LATEST.
func (c UpdateConfig) apply(s *State) (any, error) {
	f, v, err := s.edit(c.Account, c.Name, c.IfRevisionID)
	if err != nil {
		return nil, err
	}
	if c.RevisionID == "" {
		return nil, ErrInvalid.with("revision")
	}
	if c.BaseRevisionID != f.Latest.RevisionID {
		return nil, ErrStale
	}
	v.Config = c.Config
	v.changed(c.RevisionID, c.At)
	v.share()
	next := *f
	next.Latest = v
	s.replace(f, &next)
	return v, nil
}

// edit is a copy of $LATEST to change, if it may be changed now. A stale revision is told before
// a running update: waiting would not help that caller.
func (s *State) edit(account, name, ifRevision string) (*Function, *Version, error) {
	f, err := s.get(account, name)
	if err != nil {
		return nil, nil, err
	}
	if ifRevision != "" && ifRevision != f.Latest.RevisionID {
		return nil, nil, ErrRevision
	}
	if !f.Latest.settled() {
		return nil, nil, ErrBusy
	}
	v := *f.Latest
	return f, &v, nil
}

func (v *Version) settled() bool {
	return v.State != StatePending && v.UpdateStatus != UpdateInProgress
}

// changed marks a change of code or configuration: a new incarnation.
func (v *Version) changed(revision string, at int64) {
	v.RevisionID, v.Incarnation, v.LastModified = revision, revision, at
	v.UpdateStatus, v.UpdateReason, v.UpdateReasonCode = UpdateInProgress, reasonCreating, reasonCreatingCode
}

// apply settles every version that shares the incarnation: $LATEST, and what was published from
// it before it had settled. It answers the *Version that the command names as it is now, nil when
// that is gone.
func (c Settle) apply(s *State) (any, error) {
	f, err := s.get(c.Account, c.Name)
	if err != nil {
		return nil, err
	}
	next := *f
	next.Latest = c.settle(f.Latest)
	for i, v := range f.Versions {
		settled := c.settle(v)
		if settled == v {
			continue
		}
		if &next.Versions[0] == &f.Versions[0] {
			next.Versions = slices.Clone(f.Versions)
		}
		next.Versions[i] = settled
	}
	if next.Latest != f.Latest || len(f.Versions) > 0 && &next.Versions[0] != &f.Versions[0] {
		s.replace(f, &next)
	}
	if v, ok := next.Resolve(c.Version); ok {
		return v, nil
	}
	return (*Version)(nil), nil
}

// settle is v after the command: v itself when it is none of its business.
func (c Settle) settle(v *Version) *Version {
	if v.Incarnation != c.Incarnation || v.settled() {
		return v
	}
	w := *v
	w.RevisionID = c.RevisionID
	switch {
	case !c.Failed:
		w.State, w.StateReason, w.StateReasonCode = StateActive, "", ""
		w.UpdateStatus, w.UpdateReason, w.UpdateReasonCode = UpdateSuccessful, "", ""
	case v.State == StatePending:
		w.State, w.StateReason, w.StateReasonCode = StateFailed, c.Reason, c.ReasonCode
		w.UpdateStatus, w.UpdateReason, w.UpdateReasonCode = "", "", ""
	default:
		w.UpdateStatus, w.UpdateReason, w.UpdateReasonCode = UpdateFailed, c.Reason, c.ReasonCode
	}
	return &w
}

// apply answers the *Version published, or the newest when nothing changed since.
func (c PublishVersion) apply(s *State) (any, error) {
	f, v, err := s.edit(c.Account, c.Name, c.IfRevisionID)
	if err != nil {
		return nil, err
	}
	if c.RevisionID == "" {
		return nil, ErrInvalid.with("revision")
	}
	if c.IfCodeSHA256 != "" && c.IfCodeSHA256 != v.Code.base64() {
		return nil, ErrCodeMismatch.with(v.Code.base64())
	}
	next := *f
	published := next.publish(c.RevisionID, c.At, c.Description)
	if len(next.Versions) != len(f.Versions) {
		s.replace(f, &next)
	}
	return published, nil
}

// publish snapshots $LATEST under the next number. f must be the caller's own copy.
//
// Unchanged means: the newest version came from the same incarnation (whatever description it was
// given), or has the same code and configuration (an update with the zip it already had).
func (f *Function) publish(revision string, at int64, description *string) *Version {
	if n := len(f.Versions); n > 0 {
		newest := f.Versions[n-1]
		if newest.Incarnation == f.Latest.Incarnation ||
			newest.Code == f.Latest.Code && reflect.DeepEqual(newest.Config, f.Latest.Config) {
			return newest
		}
	}
	v := *f.Latest
	v.Version = strconv.Itoa(f.NextVersion)
	v.RevisionID = revision
	v.LastModified = at
	if description != nil {
		v.Config.Description = *description
	}
	if v.UpdateStatus == UpdateInProgress {
		// The version is new; only $LATEST is being updated.
		v.State, v.StateReason, v.StateReasonCode = StatePending, reasonCreating, reasonCreatingCode
		v.UpdateStatus, v.UpdateReason, v.UpdateReasonCode = "", "", ""
	}
	f.NextVersion++
	f.Versions = append(slices.Clip(f.Versions), &v)
	return &v
}

// base64 is the hash as AWS's CodeSha256 shows it.
func (c Code) base64() string {
	sum, err := hex.DecodeString(c.SHA256)
	if err != nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(sum)
}

// apply answers the *Function as it was when it is removed as a whole, as it is now when one
// version is. Deleting a version that is not there succeeds (recorded from AWS), a function not.
func (c DeleteFunction) apply(s *State) (any, error) {
	if c.Version == Latest {
		return nil, ErrLatest
	}
	f, err := s.get(c.Account, c.Name)
	if err != nil {
		return nil, err
	}
	if c.Version == "" {
		s.replace(f, nil)
		return f, nil
	}
	i, ok := f.find(c.Version)
	if !ok {
		return f, nil
	}
	if names := f.aliasesOf(c.Version); len(names) > 0 {
		return nil, ErrAliased.with(strings.Join(names, ", "))
	}
	next := *f
	next.Versions = slices.Delete(slices.Clone(f.Versions), i, i+1)
	next.forget(c.Version)
	s.replace(f, &next)
	return &next, nil
}
