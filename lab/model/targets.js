// How many targets count: those below 0 do not.
export function wantedIn(targets) {
  return targets.flat().filter(target => target >= 0).length;
}
