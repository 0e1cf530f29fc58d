package logship

import "time"

// freeBuffers bounds the emptied buffers that are kept.
const freeBuffers = 256

// sending is one function's lines on their way.
type sending struct {
	key    key
	buffer *buffer
	held   int // what they count for in Shipper.bytes
}

// run publishes until Close, in its own goroutine. It sleeps while there are no lines.
func (s *Shipper) run() {
	defer close(s.done)
	timer := time.NewTimer(0)
	<-timer.C
	defer timer.Stop()
	var batch []sending
	var chunks chunker
	armed, closing := false, false
	for !closing {
		all := true
		select {
		case <-s.wake:
			if !armed {
				timer.Reset(flushAfter)
				armed = true
			}
			all = false
		case <-timer.C:
			armed = false
		case <-s.stop:
			closing = true
		}
		batch = s.take(batch[:0], all)
		for i := range batch {
			s.publish(&chunks, &batch[i])
		}
		clear(batch)
	}
}

// take takes what waits: all of it, or only what fills a chunk.
func (s *Shipper) take(batch []sending, all bool) []sending {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !all && !s.full {
		return batch
	}
	for k, b := range s.waiting {
		if !all && b.bytes() < chunkBytes {
			continue
		}
		if held := b.bytes(); held > 0 || b.dropped > 0 {
			b.confess()
			batch = append(batch, sending{k, b, held})
		}
		if !all {
			rest := s.newBuffer()
			rest.spent = b.spent
			s.waiting[k] = rest
		}
	}
	if all {
		clear(s.waiting)
	}
	s.full = false
	return batch
}

// publish sends one function's lines and gives their memory back. It tries again while the stream
// refuses, and meanwhile others wait too: it is the same stream.
func (s *Shipper) publish(chunks *chunker, p *sending) {
	wait := retryAfter
	for from := 0; from < len(p.buffer.lines); {
		chunk, to := chunks.next(p.key, p.buffer, from)
		if s.config.Publisher.PublishLogs(chunk) {
			from, wait = to, retryAfter
			continue
		}
		if !s.rest(wait) {
			s.left += len(p.buffer.lines) - from
			break
		}
		if wait == retryAfter {
			s.config.Logger.Warn("the log stream does not take lines; will try again", "function", p.key.function)
		}
		wait = min(2*wait, retryAtMost)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes -= p.held
	if p.buffer.reset(); len(s.free) < freeBuffers {
		s.free = append(s.free, p.buffer)
	}
}

// rest waits; false when there is no more time.
func (s *Shipper) rest(wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.abort:
		return false
	}
}
