/** Files that a person chose or dropped, with their places in folders. */
export interface Named {
  readonly name: string;
  readonly file: File;
}

/** Files of a choice; those of a folder keep their path in it. */
export function named(files: FileList | null): Named[] {
  return [...(files ?? [])].map((file) => ({ name: file.webkitRelativePath || file.name, file }));
}

/** Files that were dropped, those in folders too. */
export async function filesOf(data: DataTransfer): Promise<Named[]> {
  // The list of entries is empty as soon as this function waits for anything, so it is read first.
  const entries = [...data.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  if (entries.length === 0) return named(data.files);
  const found: Named[] = [];
  for (const entry of entries) await walk(entry, found);
  return found;
}

async function walk(entry: FileSystemEntry, found: Named[]): Promise<void> {
  const name = entry.fullPath.replace(/^\//, "");
  if (entry instanceof FileSystemFileEntry || entry.isFile) {
    const file = await new Promise<File>((good, bad) => (entry as FileSystemFileEntry).file(good, bad));
    found.push({ name, file });
    return;
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  for (;;) {
    // A browser gives about a hundred at a time, and none at the end.
    const some = await new Promise<FileSystemEntry[]>((good, bad) => reader.readEntries(good, bad));
    if (some.length === 0) return;
    for (const inner of some) await walk(inner, found);
  }
}
