package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	_ "image/jpeg" // decodes JPEG
	"image/png"
	"math"

	"golang.org/x/image/draw"
)

// Bounds on what is decoded: the picture's size is in its header, and 40 million pixels are 160 MB.
const (
	maxPixels = 40_000_000
	maxSide   = 2048
)

// Request is the event: a picture and the box that its thumbnail shall fit in.
type Request struct {
	// Image is a JPEG or PNG, in base64 in the JSON.
	Image []byte `json:"image"`
	// Width and Height are the box in pixels; 0 leaves that side free. Nothing is enlarged.
	Width  int `json:"width"`
	Height int `json:"height"`
}

// Response is the thumbnail.
type Response struct {
	// Image is a PNG, in base64 in the JSON.
	Image  []byte `json:"image"`
	Width  int    `json:"width"`
	Height int    `json:"height"`
	// Source is what came in.
	Source Source `json:"source"`
}

// Source describes the picture that came in.
type Source struct {
	Format string `json:"format"`
	Width  int    `json:"width"`
	Height int    `json:"height"`
}

func handle(_ context.Context, r Request) (*Response, error) {
	switch {
	case len(r.Image) == 0:
		return nil, errors.New("the event has no image")
	case r.Width < 0 || r.Height < 0 || r.Width > maxSide || r.Height > maxSide || r.Width+r.Height == 0:
		return nil, fmt.Errorf("width and height must be 0 to %d, and not both 0", maxSide)
	}
	header, format, err := image.DecodeConfig(bytes.NewReader(r.Image))
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	if header.Width > maxPixels/max(header.Height, 1) {
		return nil, fmt.Errorf("image of %d x %d pixels is too big", header.Width, header.Height)
	}
	source, _, err := image.Decode(bytes.NewReader(r.Image))
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	width, height := fit(header.Width, header.Height, r.Width, r.Height)
	small := image.NewNRGBA(image.Rect(0, 0, width, height))
	draw.CatmullRom.Scale(small, small.Bounds(), source, source.Bounds(), draw.Src, nil)
	var out bytes.Buffer
	if err := png.Encode(&out, small); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return &Response{
		Image: out.Bytes(), Width: width, Height: height,
		Source: Source{Format: format, Width: header.Width, Height: header.Height},
	}, nil
}

// fit is the largest size within the box that keeps the proportions and enlarges nothing.
func fit(width, height, boxWidth, boxHeight int) (int, int) {
	scale := 1.0
	if boxWidth > 0 {
		scale = min(scale, float64(boxWidth)/float64(width))
	}
	if boxHeight > 0 {
		scale = min(scale, float64(boxHeight)/float64(height))
	}
	side := func(n int) int { return max(1, int(math.Round(float64(n)*scale))) }
	return side(width), side(height)
}
