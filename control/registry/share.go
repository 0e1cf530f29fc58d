package registry

import "unique"

// share lets the many functions of a cluster point to one copy of the strings that nearly all of
// them have in common ("Active", "python3.12", one role, ...): decoding makes a new copy of each,
// which is half of the memory of 100,000 small functions.
func (f *Function) share() {
	f.Account = same(f.Account)
	f.Latest.share()
	for _, v := range f.Versions {
		v.share()
	}
}

func (v *Version) share() {
	for _, s := range []*string{
		&v.State, &v.StateReason, &v.StateReasonCode,
		&v.UpdateStatus, &v.UpdateReason, &v.UpdateReasonCode,
		&v.Config.Description, &v.Config.Runtime, &v.Config.Role, &v.Config.Handler,
		&v.Config.PackageType, &v.Config.TracingMode, &v.Config.SnapStart, &v.Config.LogFormat,
		&v.Config.AppLogLevel, &v.Config.SysLogLevel, &v.Code.SHA256,
	} {
		*s = same(*s)
	}
	if v.Version == Latest {
		v.Version = Latest
	}
	if v.Incarnation == v.RevisionID {
		v.Incarnation = v.RevisionID
	}
}

func same(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}
