package registry

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/doze-run/doze/control/internal/ndjson"
)

// MaxCommand bounds one encoded command, in bytes. The largest that AWS's own limits allow (a
// configuration with its environment and the members that are only echoed) is far below.
const MaxCommand = 1 << 20

// Errors of the codec. A log entry that does not decode was written by a newer Doze, or damaged:
// whoever applies the log must stop there, since to skip it would part this node from the others.
var (
	ErrCommandTooLong = errors.New("registry: command too long")
	ErrUnknownCommand = errors.New("registry: unknown command number")
	ErrBadCommand     = errors.New("registry: command does not decode")
)

// The numbers of commands in the log. A number is never reused, nor does one ever change its
// meaning; TestCommandNumbers holds the table.
const (
	numCreateFunction   = 1
	numUpdateCode       = 2
	numUpdateConfig     = 3
	numSettle           = 4
	numPublishVersion   = 5
	numDeleteFunction   = 6
	numPutConcurrency   = 7
	numAddPermission    = 8
	numRemovePermission = 9
	numTag              = 10
	numUntag            = 11
	numPutAccessKey     = 12
	numDeleteAccessKey  = 13
	numCreateAlias      = 20
	numUpdateAlias      = 21
	numDeleteAlias      = 22
	numPutEventInvoke   = 23
	numDelEventInvoke   = 24
)

func (CreateFunction) number() byte   { return numCreateFunction }
func (UpdateCode) number() byte       { return numUpdateCode }
func (UpdateConfig) number() byte     { return numUpdateConfig }
func (Settle) number() byte           { return numSettle }
func (PublishVersion) number() byte   { return numPublishVersion }
func (DeleteFunction) number() byte   { return numDeleteFunction }
func (PutConcurrency) number() byte   { return numPutConcurrency }
func (AddPermission) number() byte    { return numAddPermission }
func (RemovePermission) number() byte { return numRemovePermission }
func (Tag) number() byte              { return numTag }
func (Untag) number() byte            { return numUntag }
func (PutAccessKey) number() byte     { return numPutAccessKey }
func (DeleteAccessKey) number() byte  { return numDeleteAccessKey }
func (CreateAlias) number() byte      { return numCreateAlias }
func (UpdateAlias) number() byte      { return numUpdateAlias }
func (DeleteAlias) number() byte      { return numDeleteAlias }
func (PutEventInvoke) number() byte   { return numPutEventInvoke }

func (DeleteEventInvoke) number() byte { return numDelEventInvoke }

func newCommand(number byte) Command {
	switch number {
	case numCreateFunction:
		return new(CreateFunction)
	case numUpdateCode:
		return new(UpdateCode)
	case numUpdateConfig:
		return new(UpdateConfig)
	case numSettle:
		return new(Settle)
	case numPublishVersion:
		return new(PublishVersion)
	case numDeleteFunction:
		return new(DeleteFunction)
	case numPutConcurrency:
		return new(PutConcurrency)
	case numAddPermission:
		return new(AddPermission)
	case numRemovePermission:
		return new(RemovePermission)
	case numTag:
		return new(Tag)
	case numUntag:
		return new(Untag)
	case numPutAccessKey:
		return new(PutAccessKey)
	case numDeleteAccessKey:
		return new(DeleteAccessKey)
	case numCreateAlias:
		return new(CreateAlias)
	case numUpdateAlias:
		return new(UpdateAlias)
	case numDeleteAlias:
		return new(DeleteAlias)
	case numPutEventInvoke:
		return new(PutEventInvoke)
	case numDelEventInvoke:
		return new(DeleteEventInvoke)
	}
	return nil
}

// Append appends the command as it stands in the log to dst: its number, then its JSON. The error
// is ErrCommandTooLong.
func Append(dst []byte, cmd Command) ([]byte, error) {
	body, err := json.Marshal(cmd)
	if err != nil {
		return dst, fmt.Errorf("registry: encode %T: %w", cmd, err)
	}
	if 1+len(body) > MaxCommand {
		return dst, fmt.Errorf("%w: %d bytes, at most %d", ErrCommandTooLong, 1+len(body), MaxCommand)
	}
	return append(append(dst, cmd.number()), body...), nil
}

// Decode is the reverse of Append, and as strict as it can be: one known number, one JSON object,
// no unknown members. It answers a pointer to the command.
func Decode(data []byte) (Command, error) {
	if len(data) > MaxCommand {
		return nil, ErrCommandTooLong
	}
	if len(data) == 0 {
		return nil, fmt.Errorf("%w: empty", ErrBadCommand)
	}
	cmd := newCommand(data[0])
	if cmd == nil {
		return nil, fmt.Errorf("%w: %d", ErrUnknownCommand, data[0])
	}
	if err := ndjson.Strict(data[1:], cmd); err != nil {
		return nil, fmt.Errorf("%w: %T: %w", ErrBadCommand, cmd, err)
	}
	return cmd, nil
}
