package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"hash/crc32"
	"image"
	"image/png"
	"os"
	"strings"
	"testing"

	"github.com/doze-run/doze/deploy/examples"
)

var update = flag.Bool("update", false, "write expected.json anew")

func TestEvent(t *testing.T) {
	example := examples.All()[0]
	var event Request
	if err := json.Unmarshal(example.Event(), &event); err != nil {
		t.Fatal(err)
	}
	photo, err := os.ReadFile("photo.jpg")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(event.Image, photo) {
		t.Error("event.json does not carry photo.jpg: run go generate")
	}
	response, err := handle(context.Background(), event)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := json.Marshal(response)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("expected.json", append(answer, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := example.Check(answer); err != nil {
		t.Error(err)
	}
}

func TestHandle(t *testing.T) {
	var picture bytes.Buffer
	if err := png.Encode(&picture, image.NewGray(image.Rect(0, 0, 300, 200))); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name          string
		request       Request
		width, height int
		wrong         string
	}{
		{name: "box", request: Request{picture.Bytes(), 60, 60}, width: 60, height: 40},
		{name: "height only", request: Request{picture.Bytes(), 0, 50}, width: 75, height: 50},
		{name: "enlarges nothing", request: Request{picture.Bytes(), 900, 900}, width: 300, height: 200},
		{name: "at least a pixel", request: Request{picture.Bytes(), 1, 0}, width: 1, height: 1},
		{name: "no image", request: Request{nil, 1, 1}, wrong: "no image"},
		{name: "no size", request: Request{picture.Bytes(), 0, 0}, wrong: "not both 0"},
		{name: "negative", request: Request{picture.Bytes(), -1, 5}, wrong: "0 to 2048"},
		{name: "huge box", request: Request{picture.Bytes(), 99999, 5}, wrong: "0 to 2048"},
		{name: "no picture", request: Request{[]byte("GIF89a"), 1, 1}, wrong: "unknown format"},
		{name: "cut short", request: Request{picture.Bytes()[:60], 1, 1}, wrong: "image: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := handle(context.Background(), tc.request)
			if tc.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wrong) {
					t.Errorf("error %v, want one with %q", err, tc.wrong)
				}
				return
			}
			if err != nil || got.Width != tc.width || got.Height != tc.height || got.Source != (Source{"png", 300, 200}) {
				t.Errorf("got %+v, error %v", got, err)
			}
		})
	}
}

// TestHandleRefusesBomb: a small file may claim any size in its header.
func TestHandleRefusesBomb(t *testing.T) {
	var picture bytes.Buffer
	if err := png.Encode(&picture, image.NewGray(image.Rect(0, 0, 1, 1))); err != nil {
		t.Fatal(err)
	}
	header := picture.Bytes()
	copy(header[16:24], []byte{0x00, 0x01, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00}) // 65536 x 65536
	copy(header[29:33], crc(header[12:29]))
	_, err := handle(context.Background(), Request{header, 10, 10})
	if err == nil || !strings.Contains(err.Error(), "too big") {
		t.Errorf("error %v", err)
	}
}

// crc is the checksum of a PNG chunk.
func crc(chunk []byte) []byte { return binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(chunk)) }
