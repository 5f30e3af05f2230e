package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A mutant is one small change of the source. All mutants of a package are compiled into one test binary; the environment
// says which of them is active.
type mutant struct {
	file string // base name
	line int
	kind kind
	code string // what is changed, on one line
}

type kind string

const (
	isFalse  kind = "taken for false" // a condition
	isTrue   kind = "taken for true"
	boundary kind = "with the boundary moved"
	left     kind = "left out" // a statement, or a call whose only result is an error
	noError  kind = "returned as nil"
	operator kind = "with the opposite operator"
)

func (m mutant) String() string {
	return fmt.Sprintf("%s:%d: %s: %s", m.file, m.line, m.code, m.kind)
}

// support is compiled into the package: the functions that a mutated place calls. The first time that a test reaches a place
// whose number is n, and which has several mutants from n on, n is written to the file of MUTANTS_REACHED.
const support = `package %s

import (
	mutantOS "os"
	mutantStrconv "strconv"
	mutantSync "sync"
)

var (
	mutantActive, _ = mutantStrconv.Atoi(mutantOS.Getenv("MUTANT"))
	mutantLog, _    = mutantOS.OpenFile(mutantOS.Getenv("MUTANTS_REACHED"), mutantOS.O_WRONLY|mutantOS.O_APPEND, 0)
	mutantReached   mutantSync.Map
)

func mutantAt(n int) int {
	if mutantLog != nil {
		if _, known := mutantReached.LoadOrStore(n, true); !known {
			_, _ = mutantLog.WriteString(mutantStrconv.Itoa(n) + "\n")
		}
	}
	return mutantActive - n
}

func mutantCond(n int, is bool, equal func() bool) bool {
	switch mutantAt(n) {
	case 0:
		return false
	case 1:
		return true
	case 2:
		return is != equal()
	}
	return is
}

func mutantLoop(n int, is bool, equal func() bool) bool {
	switch mutantAt(n) {
	case 0:
		return false
	case 1:
		return is != equal()
	}
	return is
}

func mutantKeep(n int) bool { return mutantAt(n) != 0 }

func mutantCall(n int, call func() error) error {
	if mutantAt(n) == 0 {
		return nil
	}
	return call()
}

func mutantErr(n int, err error) error {
	if mutantAt(n) == 0 {
		return nil
	}
	return err
}

func mutantValue[T any](n int, v T, other func() T) T {
	if mutantAt(n) == 0 {
		return other()
	}
	return v
}
`

// A rewriter inserts the mutants of one package into copies of its files.
type rewriter struct {
	fset    *token.FileSet
	info    *types.Info
	pkg     *types.Package
	mutants []mutant    // their number is the index; 0 is no mutant
	places  map[int]int // the first number of the same place

	source  []byte
	file    string
	inserts []insert
	done    map[ast.Node]bool
}

type insert struct {
	at   int
	text string
	open bool
	seq  int
}

// rewrite makes copies of a package's files with all mutants in them, in dir, and the overlay for the compiler.
func rewrite(ctx context.Context, root, pkg, dir string) (*rewriter, string, error) {
	list := exec.CommandContext(ctx, "go", "list", "-export", "-deps", "-json=ImportPath,Dir,GoFiles,Export", pkg)
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		return nil, "", fmt.Errorf("go list %s: %w", pkg, err)
	}
	type listed struct {
		ImportPath, Dir, Export string
		GoFiles                 []string
	}
	exports := make(map[string]string)
	var target listed // the last one
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, "", err
		}
		exports[p.ImportPath], target = p.Export, p
	}

	r := &rewriter{
		fset: token.NewFileSet(), mutants: make([]mutant, 1), places: make(map[int]int),
		info: &types.Info{Types: make(map[ast.Expr]types.TypeAndValue)},
	}
	files := make([]*ast.File, 0, len(target.GoFiles))
	for _, name := range target.GoFiles {
		f, err := parser.ParseFile(r.fset, filepath.Join(target.Dir, name), nil, parser.ParseComments)
		if err != nil {
			return nil, "", err
		}
		files = append(files, f)
	}
	config := types.Config{Importer: importer.ForCompiler(r.fset, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(exports[path])
	})}
	if r.pkg, err = config.Check(target.ImportPath, r.fset, files, r.info); err != nil {
		return nil, "", err
	}

	replace := map[string]string{filepath.Join(target.Dir, "mutants_of_all.go"): filepath.Join(dir, "support")}
	err = os.WriteFile(filepath.Join(dir, "support"), fmt.Appendf(nil, support, files[0].Name.Name), 0o600)
	for i, f := range files {
		path := filepath.Join(target.Dir, target.GoFiles[i])
		copied := filepath.Join(dir, target.GoFiles[i])
		changed, failed := r.rewriteFile(f, path)
		err = errors.Join(err, failed, os.WriteFile(copied, changed, 0o600))
		replace[path] = copied
	}
	overlay, failed := json.Marshal(map[string]any{"Replace": replace})
	path := filepath.Join(dir, "overlay.json")
	return r, path, errors.Join(err, failed, os.WriteFile(path, overlay, 0o600))
}

func (r *rewriter) rewriteFile(f *ast.File, path string) ([]byte, error) {
	var err error
	if r.source, err = os.ReadFile(path); err != nil {
		return nil, err
	}
	r.file, r.inserts, r.done = filepath.Base(path), nil, make(map[ast.Node]bool)
	for _, decl := range f.Decls {
		if fn, ok := decl.(*ast.FuncDecl); ok && fn.Body != nil {
			r.function(fn.Type, fn.Body)
		}
	}
	slices.SortStableFunc(r.inserts, func(a, b insert) int {
		switch {
		case a.at != b.at:
			return a.at - b.at
		case a.open != b.open: // what ends here ends before anything begins
			if a.open {
				return 1
			}
			return -1
		case a.open:
			return a.seq - b.seq
		default:
			return b.seq - a.seq
		}
	})
	var out bytes.Buffer
	last := 0
	for _, in := range r.inserts {
		out.Write(r.source[last:in.at])
		out.WriteString(in.text)
		last = in.at
	}
	out.Write(r.source[last:])
	return out.Bytes(), nil
}

func (r *rewriter) offset(p token.Pos) int { return r.fset.Position(p).Offset }

func (r *rewriter) text(n ast.Node) string {
	return string(r.source[r.offset(n.Pos()):r.offset(n.End())])
}

// mutate puts text around a node, for mutants of these kinds. The text before it has a %d for the number of the first.
func (r *rewriter) mutate(n ast.Node, before, after string, kinds ...kind) {
	number := len(r.mutants)
	code := strings.Join(strings.Fields(r.text(n)), " ")
	for _, k := range kinds {
		r.places[len(r.mutants)] = number
		r.mutants = append(r.mutants, mutant{r.file, r.fset.Position(n.Pos()).Line, k, code})
	}
	seq := len(r.inserts)
	r.inserts = append(r.inserts,
		insert{r.offset(n.Pos()), fmt.Sprintf(before, number), true, seq},
		insert{r.offset(n.End()), after, false, seq})
}

// function mutates what stands in one function; those within have results of their own.
func (r *rewriter) function(fn *ast.FuncType, body *ast.BlockStmt) {
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			r.function(n.Type, n.Body)
			return false
		case *ast.GenDecl:
			return n.Tok != token.CONST
		case *ast.BlockStmt:
			r.statements(n.List)
		case *ast.CaseClause:
			r.statements(n.Body)
		case *ast.CommClause:
			r.statements(n.Body)
		case *ast.IfStmt:
			r.condition(n.Cond, true)
		case *ast.ForStmt:
			if n.Cond != nil {
				r.condition(n.Cond, false)
			}
		case *ast.SwitchStmt:
			if n.Tag == nil {
				for _, c := range n.Body.List {
					for _, cond := range c.(*ast.CaseClause).List {
						r.condition(cond, true)
					}
				}
			}
		case *ast.AssignStmt:
			r.assigned(n)
		case *ast.ReturnStmt:
			r.returned(fn, n)
		case *ast.BinaryExpr:
			r.binary(n)
		}
		return true
	})
}

// condition mutates the operands of a condition. Where it is endless, as in a loop, true is left out.
func (r *rewriter) condition(cond ast.Expr, ends bool) {
	switch e := cond.(type) {
	case *ast.ParenExpr:
		r.condition(e.X, ends)
		return
	case *ast.UnaryExpr:
		if e.Op == token.NOT {
			r.condition(e.X, ends)
			return
		}
	case *ast.BinaryExpr:
		if e.Op == token.LAND || e.Op == token.LOR {
			r.done[e] = true
			r.condition(e.X, ends)
			r.condition(e.Y, ends)
			return
		}
	}
	if r.done[cond] || r.info.Types[cond].Value != nil || !types.Identical(types.Default(r.info.Types[cond].Type), types.Typ[types.Bool]) {
		return
	}
	r.done[cond] = true
	kinds := []kind{isFalse, isTrue}
	after := ", nil)"
	if e, ok := cond.(*ast.BinaryExpr); ok && slices.Contains([]token.Token{token.LSS, token.LEQ, token.GTR, token.GEQ}, e.Op) {
		kinds = append(kinds, boundary)
		after = fmt.Sprintf(", func() bool { return (%s) == (%s) })", r.text(e.X), r.text(e.Y))
	}
	if !ends {
		kinds = slices.DeleteFunc(kinds, func(k kind) bool { return k == isTrue })
		r.mutate(cond, "mutantLoop(%d, ", after, kinds...)
		return
	}
	r.mutate(cond, "mutantCond(%d, ", after, kinds...)
}

var opposite = map[token.Token]string{token.ADD: "-", token.SUB: "+", token.MUL: "/", token.QUO: "*", token.REM: "*"}

func (r *rewriter) binary(e *ast.BinaryExpr) {
	t := r.info.Types[e]
	switch e.Op {
	case token.LAND, token.LOR, token.EQL, token.NEQ, token.LSS, token.LEQ, token.GTR, token.GEQ:
		if !r.done[e] {
			r.condition(e, true)
		}
	case token.ADD, token.SUB, token.MUL, token.QUO, token.REM:
		basic, ok := t.Type.Underlying().(*types.Basic)
		if t.Value != nil || !ok || basic.Info()&types.IsNumeric == 0 {
			return
		}
		name := types.TypeString(t.Type, func(p *types.Package) string {
			if p == r.pkg {
				return ""
			}
			return p.Name()
		})
		r.mutate(e, "mutantValue(%d, ", fmt.Sprintf(", func() %s { return (%s) %s (%s) })", name, r.text(e.X), opposite[e.Op], r.text(e.Y)), operator)
	}
}

// Statements that no test can or need notice: log lines, timers and contexts that are stopped sooner or later, closing what
// was only read. Without a lock a test hangs, or the race detector speaks.
var unimportant = regexp.MustCompile(`(?s)[lL]og\b.*\.(Trace|Debug|Info|Warn|Error)(f|ln)?\(|^(defer )?(cancel|stop)\(\)|^defer .*(Close|Stop)\(\)( }\(\))?$|\blap\(|^(defer )?\S*(mu|Mutex)\.R?(Un)?[lL]ock\(\)$|^panic\(|^_ = .*\bClose\(`)

func (r *rewriter) statements(list []ast.Stmt) {
	for _, s := range list {
		switch s := s.(type) {
		case *ast.AssignStmt:
			if s.Tok == token.DEFINE {
				continue
			}
		case *ast.ExprStmt, *ast.IncDecStmt, *ast.DeferStmt, *ast.GoStmt, *ast.SendStmt:
		default:
			continue
		}
		if !unimportant.MatchString(r.text(s)) {
			r.mutate(s, "if mutantKeep(%d) { ", " }", left)
		}
	}
}

var errorType = types.Universe.Lookup("error").Type()

func (r *rewriter) isError(e ast.Expr) bool {
	t := r.info.Types[e].Type
	return t != nil && types.Identical(t, errorType)
}

// assigned mutates the call in err := f().
func (r *rewriter) assigned(s *ast.AssignStmt) {
	if len(s.Lhs) != 1 || len(s.Rhs) != 1 || s.Tok != token.DEFINE {
		return
	}
	if call, ok := s.Rhs[0].(*ast.CallExpr); ok && r.isError(call) {
		r.mutate(call, "mutantCall(%d, func() error { return ", " })", left)
	}
}

func (r *rewriter) returned(fn *ast.FuncType, s *ast.ReturnStmt) {
	if fn.Results == nil || len(s.Results) == 0 || len(s.Results) != fn.Results.NumFields() {
		return
	}
	last := s.Results[len(s.Results)-1]
	fails := r.isError(last) && !r.info.Types[last].IsNil() // then nobody looks at the other results
	for i, f := range fields(fn.Results) {
		e := s.Results[i]
		switch t := r.info.Types[f].Type; {
		case types.Identical(t, errorType) && !r.info.Types[e].IsNil():
			r.mutate(e, "mutantErr(%d, ", ")", noError)
		case types.Identical(t, types.Typ[types.Bool]) && !fails:
			if v := r.info.Types[e].Value; v == nil {
				r.condition(e, true)
			} else if v.String() == "true" {
				r.mutate(e, "mutantCond(%d, ", ", nil)", isFalse)
			} else {
				r.mutate(e, "!mutantCond(%d, !", ", nil)", isTrue)
			}
		}
	}
}

// fields has the type of each result.
func fields(list *ast.FieldList) (all []ast.Expr) {
	for _, f := range list.List {
		for range max(len(f.Names), 1) {
			all = append(all, f.Type)
		}
	}
	return all
}
