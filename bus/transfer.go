package bus

import (
	"context"
	"fmt"
	"time"
)

// Bodies over inlineBytes travel in chunks, so that one large body neither needs a large message
// nor fills a connection's buffer: at most transferWindow chunks are on their way at once.
const (
	inlineBytes    = 1 << 20
	chunkBytes     = 256 << 10
	transferWindow = 8
	// maxBody bounds what a receiver sets memory aside for: AWS's 6 MB with room for its error texts.
	maxBody = 8 << 20
)

// sendChunks hands body to publish piece by piece, never more than transferWindow ahead of the
// credits.
func sendChunks(body []byte, credits <-chan struct{}, limit time.Duration, publish func(piece []byte) error) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	ahead := 0
	for len(body) > 0 {
		if ahead == transferWindow {
			select {
			case <-credits:
				ahead--
			case <-timer.C:
				return fmt.Errorf("bus: the receiver of a body stalled: %w", context.DeadlineExceeded)
			}
		}
		n := min(len(body), chunkBytes)
		if err := publish(body[:n]); err != nil {
			return err
		}
		body = body[n:]
		ahead++
	}
	return nil
}
