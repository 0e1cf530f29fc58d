//go:build linux

package stage

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
	"unsafe"
)

// TestRawRules reads raw.go and holds it to its rules: what runs after a fork without exec must
// not call into the Go runtime.
func TestRawRules(t *testing.T) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, "raw.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	own := map[string]bool{}
	for _, d := range file.Decls {
		if f, ok := d.(*ast.FuncDecl); ok {
			own[f.Name.Name] = true
		}
	}
	types := map[string]bool{"uintptr": true, "uint64": true, "uint32": true, "int32": true}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		for _, want := range []string{"//go:nosplit", "//go:norace", "//go:nocheckptr"} {
			if f.Doc == nil || !strings.Contains(commentText(f.Doc), want) {
				t.Errorf("%s: %s lacks %s", fset.Position(f.Pos()), f.Name.Name, want)
			}
		}
		ast.Inspect(f.Body, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncLit, *ast.DeferStmt, *ast.GoStmt, *ast.RangeStmt, *ast.CompositeLit:
				t.Errorf("%s: %s has a construct that may need the runtime (%T)", fset.Position(n.Pos()), f.Name.Name, n)
			case *ast.CallExpr:
				if !allowedCall(n, own, types) {
					t.Errorf("%s: %s calls something that may need the runtime", fset.Position(n.Pos()), f.Name.Name)
				}
			}
			return true
		})
	}
}

func commentText(g *ast.CommentGroup) string {
	var s strings.Builder
	for _, c := range g.List {
		s.WriteString(c.Text + "\n")
	}
	return s.String()
}

func allowedCall(call *ast.CallExpr, own, types map[string]bool) bool {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return own[f.Name] || types[f.Name]
	case *ast.ParenExpr: // a conversion to a pointer type
		_, ok := f.X.(*ast.StarExpr)
		return ok
	case *ast.SelectorExpr:
		if x, ok := f.X.(*ast.Ident); ok {
			switch x.Name {
			case "unsafe":
				return true
			case "syscall":
				return f.Sel.Name == "RawSyscall" || f.Sel.Name == "RawSyscall6"
			}
		}
		return own[f.Sel.Name]
	}
	return false
}

func TestWireSizes(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"Header", unsafe.Sizeof(Header{}), HeaderSize},
		{"Op", unsafe.Sizeof(Op{}), OpSize},
		{"Report", unsafe.Sizeof(Report{}), ReportSize},
		{"msghdr", unsafe.Sizeof(msghdr{}), 56},
		{"cloneArgs", unsafe.Sizeof(cloneArgs{}), 88},
	} {
		if c.got != c.want {
			t.Errorf("%s is %d bytes, not %d", c.name, c.got, c.want)
		}
	}
}

// FuzzAccept: a request that is not whole is refused, and one that is accepted names nothing
// outside of itself.
func FuzzAccept(f *testing.F) {
	good := Header{Magic: Magic, Kind: Step, Size: HeaderSize, OpsOff: HeaderSize, RelocOff: HeaderSize}
	f.Add(append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&good)), HeaderSize)...))
	f.Add([]byte("ezod"))
	in := new(inbox)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > MaxMessage {
			return
		}
		in.prepare()
		in.msg.controllen = 0
		clear(in.buf[:])
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&in.buf)), MaxMessage), b)
		if !in.accept(uintptr(len(b))) {
			return
		}
		h := in.header()
		end := uint64(h.OpsOff) + (uint64(h.Main)+uint64(h.Child)+uint64(h.After))*OpSize
		if end > uint64(len(b)) {
			t.Fatalf("operations end at %d of %d bytes", end, len(b))
		}
	})
}
