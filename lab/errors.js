// An error that a reader can mend: the page shows its message as it is.
export class LabError extends Error {}
